"""Text and images to shards of ids, and shards to batches in an order that is a pure function.

raw files --sources, images--> documents, pictures --prepare--> shards + index.json (shards)
shards --index, order, loader--> batches of one rank

Names are imported when they are used: a reader process needs a small part of this and starts in half a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glomo_dist.runtime import lazy

if TYPE_CHECKING:
    from glomo_dist.data.config import Reading
    from glomo_dist.data.gather import BadShard
    from glomo_dist.data.index import ShardIndex, read_metadata, read_sample
    from glomo_dist.data.loader import Batch, SampleKey, Stream
    from glomo_dist.data.order import Pieces, WindowOrder, Windows
    from glomo_dist.data.pixels import PixelTokenizer
    from glomo_dist.data.places import Address, Place, exists, place
    from glomo_dist.data.prepare import prepare_images, prepare_text
    from glomo_dist.data.text import WordTokenizer, tokenize
    from glomo_dist.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_json

__all__ = [
    "Address",
    "BadShard",
    "Batch",
    "Pieces",
    "PixelTokenizer",
    "Place",
    "Reading",
    "SampleKey",
    "ShardIndex",
    "Stream",
    "Tokenizer",
    "WindowOrder",
    "Windows",
    "WordTokenizer",
    "exists",
    "load_tokenizer",
    "place",
    "prepare_images",
    "prepare_text",
    "read_metadata",
    "read_sample",
    "tokenize",
    "tokenizer_from_json",
]

__getattr__ = lazy.names(
    __name__,
    {
        "config": ("Reading",),
        "gather": ("BadShard",),
        "index": ("ShardIndex", "read_metadata", "read_sample"),
        "loader": ("Batch", "SampleKey", "Stream"),
        "order": ("Pieces", "WindowOrder", "Windows"),
        "pixels": ("PixelTokenizer",),
        "places": ("Address", "Place", "exists", "place"),
        "prepare": ("prepare_images", "prepare_text"),
        "text": ("WordTokenizer", "tokenize"),
        "tokenizer": ("Tokenizer", "load_tokenizer", "tokenizer_from_json"),
    },
)
