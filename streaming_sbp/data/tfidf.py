"""Documents as sparse vectors of their words: log counts, weighted by how rare a word is.

A word is a run of letters, so in languages written without spaces documents look alike only where whole runs are.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

IDF_POWER = 1.5  # of log(1 + n / documents with the word): rare words say what a text is about (docs/experiments.md)
HASHED_TERMS = 2**22  # columns that words are hashed to; 100,000 distinct words share a column in 2 % of the cases
WORD = r"(?u)[^\W\d_]{2,}"  # snake_case is several words


def counter(num_terms: int = HASHED_TERMS) -> HashingVectorizer:
    """Its ``transform`` gives the counts of words: float32, sparse [documents, terms]."""
    return HashingVectorizer(
        n_features=num_terms, token_pattern=WORD, alternate_sign=False, norm=None, dtype=np.float32
    )


def num_documents_with(counts: sparse.csr_matrix) -> np.ndarray:
    """Of each column, in how many rows it is: int64 [terms]."""
    return np.bincount(counts.indices, minlength=counts.shape[1])


def weigh(counts: sparse.csr_matrix, num_with: np.ndarray, num_documents: int) -> sparse.csr_matrix:
    """(1 + log count) * log(1 + n / documents with the word) ** `IDF_POWER`, rows of unit norm (Salton 1988).

    Next to scikit-learn's default, words that nearly every document has count for little.
    ``num_with``: as `num_documents_with`, of all ``num_documents``, which may be more than the rows.
    """
    weights = counts.astype(np.float64)
    rarity = np.log1p(num_documents / np.maximum(num_with[weights.indices], 1)) ** IDF_POWER
    weights.data = (1 + np.log(weights.data)) * rarity
    return normalize(weights).astype(np.float32)
