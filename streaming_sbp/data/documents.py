"""What a document is called, and every choice that depends on its name alone.

A document's id is a digest of its text, so the same text has the same id in every corpus, on every machine, and each
choice below (held-out or not, in the sample or not) is the same whatever the order of the input.
"""

from __future__ import annotations

import hashlib

SPLITS = ("train", "heldout")  # every data set has them
HELDOUT_GROUPS = "heldout_groups"  # a third one: groups that the source knows, else neighbourhoods, each as a whole
ALL_SPLITS = (*SPLITS, HELDOUT_GROUPS)
ID_BYTES = 16
_KEY_BITS = 64


def document_id(text: str) -> str:
    """32 hex digits: blake2b of the text's UTF-8. Raises UnicodeEncodeError for text with lone surrogates."""
    return hashlib.blake2b(text.encode(), digest_size=ID_BYTES).hexdigest()


def sampling_key(id: str, purpose: str) -> int:
    """A number evenly distributed over ``0 .. 2**64 - 1``; keys of one document for two purposes are independent."""
    digest = hashlib.blake2b(bytes.fromhex(id), digest_size=_KEY_BITS // 8, person=purpose.encode())
    return int.from_bytes(digest.digest(), "little")


def in_share(id: str, share: float, purpose: str) -> bool:
    """Whether the document belongs to an even sample of ``share`` (0..1) of all documents."""
    return sampling_key(id, purpose) < share * 2**_KEY_BITS


def split_of(id: str, heldout_share: float, group: str = "", heldout_groups_share: float = 0.0) -> str:
    """ "heldout_groups" when the document's group is held out as a whole; of the others "heldout" for
    ``heldout_share``, else "train". ``group`` names what the document is about; "" for none.
    """
    if group and is_heldout_group(group, heldout_groups_share):
        return HELDOUT_GROUPS
    return "heldout" if in_share(id, heldout_share, "heldout") else "train"


def is_heldout_group(group: str, share: float) -> bool:
    """Whether the group belongs to an even sample of ``share`` (0..1) of all groups, by digest of its name."""
    return in_share(document_id(group), share, "heldout groups")
