"""Residual compression of token vectors (Santhanam et al., ColBERTv2, NAACL 2022): a centroid, and two bits a number.

A vector is its nearest centroid and what is left over; of each dimension's left-overs one of four values is kept, by which
quarter of a sample they fall into. Unit vectors get unit length again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BITS = 2
BUCKETS = 1 << BITS
EACH = 8 // BITS  # numbers in a byte
MOST_LEFT = 100_000  # vectors whose left-overs' quantiles are taken
MOST_PRODUCTS = 1 << 26  # of vectors and centroids at once: 268 MB of float32


@dataclass(frozen=True, eq=False)
class Codec:
    """Centroids [C, D] of unit length; the borders [D, 3] between a dimension's quarters, and their values [D, 4]."""

    centroids: NDArray[np.float32]
    borders: NDArray[np.float32]
    values: NDArray[np.float32]

    @property
    def width(self) -> int:
        return int(self.centroids.shape[1])

    @property
    def bytes_each(self) -> int:
        """Bytes of a vector: its centroid's number, and its bits."""
        return code_type(len(self.centroids))().itemsize + bytes_of_bits(self.width)


def code_type(centroids: int) -> type[np.unsignedinteger]:
    """The smallest type that counts so many."""
    return np.uint16 if centroids <= 1 << 16 else np.uint32


def bytes_of_bits(width: int) -> int:
    return -(-width // EACH)


def centroids_for(tokens: int) -> int:
    """How many centroids so many token vectors get: 16 times their root, as a power of 2 below; never more than a quarter."""
    wanted = min(16 * tokens**0.5, tokens / 4)
    return max(2, 1 << int(np.log2(max(2.0, wanted))))


def learn(centroids_CD: NDArray[np.float32], sample_TD: NDArray[np.float32]) -> Codec:
    """The codec of these centroids: borders and values are quantiles of what a sample leaves over, dimension by dimension."""
    unit = centroids_CD / np.maximum(np.linalg.norm(centroids_CD, axis=1, keepdims=True), 1e-12)
    sample_TD = sample_TD[:: -(-len(sample_TD) // MOST_LEFT)]
    left_TD = sample_TD - unit[nearest(unit, sample_TD)]
    borders = np.quantile(left_TD, [n / BUCKETS for n in range(1, BUCKETS)], axis=0).T
    values = np.quantile(left_TD, [(n + 0.5) / BUCKETS for n in range(BUCKETS)], axis=0).T
    return Codec(*(np.ascontiguousarray(one, dtype=np.float32) for one in (unit, borders, values)))


def nearest(centroids_CD: NDArray[np.float32], vectors_TD: NDArray[np.float32]) -> NDArray[np.int64]:
    """The number of each vector's centroid of greatest inner product; of equal ones the first."""
    block = min(8192, max(1, MOST_PRODUCTS // len(centroids_CD)))
    found = [np.argmax(vectors_TD[lo : lo + block] @ centroids_CD.T, axis=1) for lo in range(0, len(vectors_TD), block)]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def compress(codec: Codec, vectors_TD: NDArray[np.float32]) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint8]]:
    """Codes [T] and bits [T, ceil(D / 4)] of vectors."""
    codes = nearest(codec.centroids, vectors_TD)
    left_TD = vectors_TD - codec.centroids[codes]
    buckets = (left_TD[:, :, None] > codec.borders).sum(2).astype(np.uint8)
    lacking = bytes_of_bits(codec.width) * EACH - codec.width
    fours = np.pad(buckets, ((0, 0), (0, lacking))).reshape(len(vectors_TD), -1, EACH)
    bits = (fours << (BITS * np.arange(EACH, dtype=np.uint8))).sum(2, dtype=np.uint8)
    return codes.astype(code_type(len(codec.centroids))), bits


def decompress(codec: Codec, codes_T: NDArray[np.unsignedinteger], bits_TB: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Vectors [T, D] of unit length."""
    buckets = (bits_TB[:, :, None] >> (BITS * np.arange(EACH, dtype=np.uint8))) & (BUCKETS - 1)
    buckets_TD = buckets.reshape(len(codes_T), bits_TB.shape[1] * EACH)[:, : codec.width]
    found = codec.centroids[codes_T] + codec.values[np.arange(codec.width), buckets_TD]
    result: NDArray[np.float32] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return result
