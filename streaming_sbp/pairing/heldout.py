"""Which pairs only judge the synthesizer: whole neighbourhoods of related documents.

In real text nearly all paired documents hang together, so there is no clean component to hold out. Instead documents
are taken as anchors, in the order of their digest, each with the documents it is paired with, until the share is
reached. Pairs inside are held out, pairs outside are for training, and pairs that cross are dropped, so no document of
a held-out pair is in a training pair. Documents that are copies of each other count as one and stay together.

Where the data set has held-out groups (`data.heldout_groups_share`), their documents are in no training at all, so
their pairs are the ones held out, and no others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

PURPOSE = "heldout pairs"  # of the sampling key that orders anchors


@dataclass(frozen=True)
class Cut:
    """bool [pairs] each; a pair that is neither crosses the cut. ``least``: the share could not be had, and only the
    pairs of two documents are held out."""

    heldout: np.ndarray
    training: np.ndarray
    least: bool = False

    @property
    def whole(self) -> bool:
        return bool(self.heldout.any() and self.training.any())


def groups_of_copies(num_documents: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A group number for each document, int64 [documents]: equal for documents that pairs of copies connect."""
    edges = sparse.coo_matrix((np.ones(len(first), dtype=bool), (first, second)), shape=(num_documents, num_documents))
    return csgraph.connected_components(edges, directed=False)[1].astype(np.int64)


def cut(seed: np.ndarray, target: np.ndarray, group: np.ndarray, key: np.ndarray, share: float) -> Cut:
    """Hold out about ``share`` of the documents that have a pair, and at most that.

    ``group`` and ``key``: int64 and uint64 [documents], the group of copies and the digest's number. Where no
    neighbourhood is small enough, one pair is held out. Without two pairs that share no group there is nothing to cut:
    then, and for share 0, all pairs are for training.
    """
    seed_group, target_group = group[seed], group[target]
    if share > 0.0 and len(seed):
        held = _neighbourhoods(seed, target, group, key, share)
        found = _split(held, seed_group, target_group)
        if not found.whole:
            held = _one_pair(seed_group, target_group, key[seed])
            found = replace(_split(held, seed_group, target_group), least=True)
        if found.whole:
            return found
    return Cut(np.zeros(len(seed), dtype=bool), np.ones(len(seed), dtype=bool))


def cut_groups(seed: np.ndarray, target: np.ndarray, group: np.ndarray, num_training: int) -> Cut:
    """Documents from ``num_training`` on are held out, and judge unless one below is a copy of them.

    ``group``: int64 [documents], the group of copies.
    """
    trained = group[:num_training]
    judges = ~np.isin(group, trained)
    return Cut(judges[seed] & judges[target], (seed < num_training) & (target < num_training))


def _split(held: np.ndarray, seed_group: np.ndarray, target_group: np.ndarray) -> Cut:
    """The cut that follows from the groups held out: int64 [any]."""
    seed_in, target_in = np.isin(seed_group, held), np.isin(target_group, held)
    return Cut(seed_in & target_in, ~(seed_in | target_in))


def _neighbourhoods(
    seed: np.ndarray, target: np.ndarray, group: np.ndarray, key: np.ndarray, share: float
) -> np.ndarray:
    """Groups to hold out: those of anchors and of their neighbours. One too large for what is left is passed over."""
    paired = np.unique(np.concatenate([seed, target]))
    size = np.bincount(group[paired], minlength=group.max() + 1)
    neighbours = _adjacency(group[seed], group[target], len(size))
    left = share * len(paired)
    held: set[int] = set()
    for anchor in group[paired[np.argsort(key[paired])]].tolist():
        if left < 2:
            break
        new = {anchor, *neighbours.indices[neighbours.indptr[anchor] : neighbours.indptr[anchor + 1]].tolist()} - held
        needed = size[list(new)].sum()
        if anchor in new and needed <= left:
            held |= new
            left -= needed
    return np.array(sorted(held), dtype=np.int64)


def _adjacency(first: np.ndarray, second: np.ndarray, num_groups: int) -> sparse.csr_matrix:
    ones = np.ones(2 * len(first), dtype=bool)
    ends = (np.concatenate([first, second]), np.concatenate([second, first]))
    return sparse.coo_matrix((ones, ends), shape=(num_groups, num_groups)).tocsr()


def _one_pair(seed_group: np.ndarray, target_group: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The two groups of the pair that the fewest other pairs touch, among pairs that others do not touch; or none."""
    low, high = np.minimum(seed_group, target_group), np.maximum(seed_group, target_group)
    loops = low == high
    degree = np.bincount(low, minlength=high.max() + 1) + np.bincount(high[~loops], minlength=high.max() + 1)
    _, back, between = np.unique(np.stack([low, high]), axis=1, return_inverse=True, return_counts=True)
    touching = np.where(loops, degree[low], degree[low] + degree[high] - between[back.reshape(-1)])
    best = np.lexsort((key, touching))[0]
    return np.array([low[best], high[best]]) if touching[best] < len(low) else np.zeros(0, dtype=np.int64)
