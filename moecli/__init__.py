"""moecli: run Mixture-of-Experts models on machines too small for them, and see what the router does."""

__version__ = "0.1.0"
