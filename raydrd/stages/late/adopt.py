"""adopt_late: any model -> a late-interaction student's folder: cut if asked, with a projection where it has none."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from raydrd.models.latelayout import PASSAGE_LENGTH, QUERY_LENGTH, describe_late, read_late
from raydrd.models.layout import Layout, tokenizer_digest
from raydrd.spine.store import Located, Work, stage
from raydrd.stages.adopt import Student, wanted_layout


def late_layout(student: Student, source: Path | None) -> Layout:
    """The layout of the folder (None: nobody has looked at it) with the changes that the config asks for.

    Raises:
        InputError: a folder that cannot become such a student.
    """
    if source is None:
        return wanted_layout(student, Layout(query_max_len=QUERY_LENGTH, passage_max_len=PASSAGE_LENGTH))
    return wanted_layout(student, read_late(source)[0])


def late_settings(student: Student) -> dict[str, Any]:
    """What the config asks of the token vectors; None: as the folder says."""
    return {
        "dim": student.dim,
        "markers": list(student.markers) if student.markers else None,
        "query_expansion": student.query_expansion,
        "attend_to_expansion": student.attend_to_expansion,
        "skip_punctuation": student.skip_punctuation,
        "pooled": student.kind == "hybrid",
    }


@stage(version=1)
def adopt_late(
    work: Work, *, source: Located, layout: Layout, late: dict[str, Any], layers: int | list[int] | None, seed: int
) -> dict[str, Any]:
    """A PyLate folder under `model/`, with `layout` and the settings `late`, cut to `layers`.

    A plain encoder gets a projection drawn by `seed`: the same one whatever the layers, so a cut student can learn its
    uncut original's token vectors again. `words` are digests of the source's tokenizer, as it is and without tokens that
    were added: markers change the student's own, and not how words are cut.

    Raises:
        InputError: what the settings ask for does not go with the model.
    """
    from raydrd.models.encoders import cut_layers
    from raydrd.models.late import made_late, save_late

    model, tokenizer = made_late(source.where, late, seed=seed)
    own, projected = read_late(source.where)
    if layers is not None:
        cut_layers(model.backbone, layers if isinstance(layers, int) else tuple(layers))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        # The model's files lie at the top of its folder, wherever they lay in the source's.
        model.layout = layout.model_copy(update={"query_folder": "", "passage_folder": "", "dense": (), "query_dense": ()})
        save_late(model, model.layout, folder, tokenizer=tokenizer)
        work.folder.upload(Path(scratch))
        return {
            **describe_late(folder),
            "rows": 1,
            "unit": "model",
            "parameters": sum(p.numel() for p in model.parameters()),
            "width": model.width,
            "layers": int(model.backbone.config.num_hidden_layers),
            "projection": "drawn" if projected is None else "its own",
            "words": [tokenizer_digest(source.where / own.passage_folder, added=added) for added in (True, False)],
        }
