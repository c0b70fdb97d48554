"""Trace which experts a Mixture-of-Experts model uses, decide where each belongs, run it so."""
