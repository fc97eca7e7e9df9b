"""How a study samples its trials.

Imported when a study is opened, because importing Optuna takes long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.samplers import BaseSampler, TPESampler


class TrialSampler(BaseSampler):
    """A tree-structured Parzen estimator for each trial, with a seed of its own.

    So a search that continues, or another process, does not repeat the suggestions of earlier
    trials, and threads may share the study.

    Parameters
    ----------
    seed : int
        Seeds each trial, together with its number.
    first : dict or None
        Values of the trial that begins the study (``studies.begins``).
    joint : bool
        Whether parameters are sampled from their joint distribution. Those that are only suggested
        together, as in a conditional space, are a group of their own.
    """

    def __init__(self, seed: int, first: dict[str, Any] | None, *, joint: bool):
        self.seed, self.first, self.joint = seed, first, joint
        self.samplers: dict[int, TPESampler] = {}  # of the trials that run

    def before_trial(self, study, trial):
        (seed,) = np.random.SeedSequence([self.seed, trial.number]).generate_state(1).tolist()
        self.samplers[trial.number] = TPESampler(
            seed=seed, multivariate=self.joint, group=self.joint
        )

    def infer_relative_search_space(self, study, trial):
        if self.first is not None and not any(
            other.user_attrs.get("begins") and other.state.name != "FAIL"
            for other in study.get_trials(deepcopy=False)
        ):
            return {}  # as this may be the first
        return self.samplers[trial.number].infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space):
        if not search_space:
            return {}
        return self.samplers[trial.number].sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        if self.first is not None and trial.user_attrs.get("begins"):
            return self.first[param_name]
        sampler = self.samplers[trial.number]
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study, trial, state, values):
        self.samplers.pop(trial.number, None)  # a trial of another process has none here
