"""Encoders and rerankers: folders, towers, prompts, batches. torch and transformers, no Ray, no store."""
