"""Prompts: plain dicts, as the real ones are at run time."""

TokensPrompt = TextPrompt = dict
