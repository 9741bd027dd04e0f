"""Answers to prompts and the likelihood of reference answers: batched, and never computed twice for the same files."""

from stages.generation.answers import Answer, answer, answer_rows
from stages.generation.likelihood import Likelihood, likelihoods, with_likelihood
from stages.generation.weights import Weights

__all__ = ["Answer", "Likelihood", "Weights", "answer", "answer_rows", "likelihoods", "with_likelihood"]
