"""Answers to prompts and the likelihood of reference answers: batched, and never computed twice for the same files."""

from stages.model.generation.answers import Answer, answer, answer_rows
from stages.model.generation.likelihood import Likelihood, likelihoods, with_likelihood
from stages.model.generation.weights import Weights

__all__ = ["Answer", "Likelihood", "Weights", "answer", "answer_rows", "likelihoods", "with_likelihood"]
