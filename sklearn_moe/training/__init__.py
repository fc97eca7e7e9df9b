"""Training a mixture, and predicting with it: what is between the estimator and torch."""
