"""A fitted mixture of logistic regressions on its training samples."""

from __future__ import annotations

from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from scipy.stats import chi2, norm

from sklearn_moe.interpretation.inference import Design, Likelihood, determined
from sklearn_moe.interpretation.terms import Terms
from sklearn_moe.mixture import MixtureOfExperts
from sklearn_moe.training.polish import can_be_polished, can_be_relaxed, relaxed

COLUMNS = ("part", "expert", "class", "feature", "coefficient", "odds_ratio", "standard_error")
COLUMNS += ("lower", "upper", "p_value", "method")

# So many coefficients without a standard error are named.
MOST_NAMED = 4


class LinearFit:
    """A fitted mixture on its training samples: the likelihood, and the terms of each part."""

    def __init__(self, model, X, y, weight, groups, names):
        self.model, module = model, model.module_
        samples = model.reader_.read(X, model)
        encoded = torch.from_numpy(model.net_.evaluate(samples, MixtureOfExperts.encode))
        encoded = encoded.to(model.net_.device)
        self.n_experts, self.classes = len(model.expert_costs_), model.classes_
        gate_proba = model.net_.evaluate(samples, MixtureOfExperts.gate_proba, np.float64)
        self.usage = np.average(gate_proba, axis=0, weights=weight)
        self.group = None if groups is None else np.asarray(groups)
        self.names = names

        sources = np.arange(encoded.shape[1])
        if model.encoder_ is not None:
            sources = model.encoder_.sources_
        self.omitted = []

        def part_of(columns, read=slice(None)):
            """Return the design and the terms of a part, and which of its columns it reads."""
            columns = np.arange(len(sources)) if columns is None else _numpy(columns)
            read = np.arange(len(columns))[read]
            x = _numpy(encoded)[:, columns[read]]
            follows = determined(x, sources[columns[read]])
            self.omitted += np.unique(sources[columns[read]][follows]).tolist()
            read = read[~follows]
            return Design(x[:, ~follows]), Terms(model, columns[read], samples), read

        self.expert_design, self.expert_terms, _ = part_of(module.expert_columns)
        self.gate_design = self.gate_terms = penalty = None
        gate, parts = module.gate, []
        if can_be_polished(model.net_) and gate.is_linear:
            self.gate_design, self.gate_terms, used = part_of(
                module.gate_columns, _numpy(gate.used_inputs)
            )
            of_fit = relaxed if can_be_relaxed(model.net_, len(samples)) else lambda each: each
            slopes = [
                _numpy(of_fit(each).slope(gate))[0, used]
                for each in model.net_.regularizations
                if getattr(each, "of_weights", False)
            ]
            if slopes and self.n_experts > 1:
                slope = sum(slopes) * gate.temperature**2
                penalty = self.gate_design.penalty(slope)
            logits = model.net_.evaluate(samples, lambda module, x: module.route(x).logits)
            part = self.gate_design.parameters(logits)
            parts = [part[1:] - part[:1]]
        self.likelihood = Likelihood(
            self.gate_design or np.log(np.maximum(gate_proba, np.finfo(float).tiny)),
            self.expert_design,
            y,
            n_experts=self.n_experts,
            n_classes=len(self.classes),
            sample_weight=weight,
            group=self.group,
            gate_penalty=penalty,
        )
        self.data = y, weight, penalty
        self.gate_is_penalised = penalty is not None and bool(penalty.any())
        logits = model.net_.evaluate(samples, MixtureOfExperts.expert_logits)
        for own in logits.transpose(1, 0, 2):
            part = self.expert_design.parameters(own)
            parts.append(part[1:] - part[:1])
        self.parameters = np.concatenate([part.ravel() for part in parts])

    def check_samples(self):
        """Raise an error unless these are the samples of the fit."""
        expected = getattr(self.model, "log_likelihood_", None)
        if expected is None:
            return
        found = self.likelihood.evaluate(self.parameters)[0]
        if not abs(found - expected) <= 1e-4 * max(abs(expected), 1):
            raise ValueError(
                "X and y must be the samples of the fit, with its sample_weight and groups: they "
                f"have a log-likelihood of {found:.2f}, but log_likelihood_ is {expected:.2f}. "
                "Standard errors on other samples would not be those of this mixture. Fit a clone "
                "on these samples if you want their coefficients."
            )

    @property
    def has_linear_gate(self):
        """Whether the parameters of the gate are among those of the likelihood."""
        return self.gate_design is not None or self.n_experts == 1

    @cached_property
    def rows(self):
        """Part, expert, class and name of each coefficient, and its contrast.

        The contrast is nan if the samples do not determine the coefficient.
        """
        rows = []
        if self.gate_terms is not None:
            for expert in range(1, self.n_experts):
                rows += self._rows("gate", expert, None, 0, expert - 1)
        for expert in range(self.n_experts):
            for i, label in enumerate(self.classes[1:].tolist()):
                rows += self._rows("expert", expert, label, expert + 1, i)
        return rows

    @property
    def contrasts(self):
        """The contrasts of all coefficients, (n_coefficients, n_parameters)."""
        return np.array([contrast for *_, contrast in self.rows])

    def words(self):
        """Yield the words and the unit of each term."""
        for terms in (self.gate_terms, self.expert_terms):
            for term in terms.terms if terms else []:
                yield term.words(self.names), terms.unit(term)

    def _rows(self, part, expert, label, block, output):
        terms, design = self.expert_terms, self.expert_design
        if part == "gate":
            terms, design = self.gate_terms, self.gate_design
        block = self.likelihood.block(block)
        start = block.start + output * design.columns.shape[1]
        for term in terms.terms:
            contrast = design.contrast(terms.direction(term))
            placed = np.full(self.likelihood.n_parameters, np.nan if contrast is None else 0.0)
            if contrast is not None:
                placed[start : start + len(contrast)] = contrast
            yield part, expert, label, term.words(self.names).feature, placed

    def coefficients(self, errors, confidence):
        """Return the columns of the table of coefficients.

        ``errors`` says how certain they are (see standard_errors.py), or is None.
        """
        table = {name: [] for name in COLUMNS}
        quantile = norm.ppf((1 + confidence) / 2)
        for i, (*names, contrast) in enumerate(self.rows):
            value, error, method = float(contrast @ self.parameters), np.nan, None
            if errors is not None and errors.is_known[i]:
                value = float(errors.values[i])
                if not self._is_penalised(names[0]):
                    error, method = float(errors.errors[i]), errors.method
            with np.errstate(over="ignore"):
                ratio = float(np.exp(value))
            p_value = float(2 * norm.sf(abs(value) / error)) if error > 0 else np.nan
            interval = value - quantile * error, value + quantile * error
            row = (*names, value, ratio, error, *map(float, interval), p_value, method)
            for column, each in zip(COLUMNS, row, strict=True):
                table[column].append(each)
        return table

    def _is_penalised(self, part):
        return part == "gate" and self.gate_is_penalised

    def differences(self, errors):
        """Return Wald tests of each coefficient being the same in all experts."""
        tests = {name: [] for name in ("class", "feature", "statistic", "degrees_of_freedom")}
        values = []
        by_term = {}
        for i, (part, _, label, name, _) in enumerate(self.rows):
            if part == "expert":
                by_term.setdefault((label, name), []).append(i)
        for (label, name), places in by_term.items():
            if len(places) == 1 or not errors.is_known[places].all():
                continue
            less_first = np.eye(len(places))[1:] - np.eye(len(places))[0]
            covariance = less_first @ errors.covariance(places) @ less_first.T
            value = less_first @ errors.values[places]
            statistic = float(value @ np.linalg.pinv(covariance, hermitian=True) @ value)
            for column, each in zip(tests, (label, name, statistic, len(value)), strict=True):
                tests[column].append(each)
            values.append(chi2.sf(statistic, len(value)))
        return {**tests, "p_value": _holm(values)}

    def alike(self, maximum):
        """Return how the BIC changes with one expert in place of each two."""
        own = _bic(self.likelihood, maximum)
        return {
            pair: _bic(*self._merged(maximum.responsibilities, *pair)) - own
            for pair in combinations(range(self.n_experts), 2)
        }

    def one_for_all(self, maximum):
        """Return how the BIC changes with one expert in place of all."""
        if self.n_experts == 1:
            return 0.0
        everyone = np.ones((len(maximum.responsibilities), 1))
        return _bic(*self._best(everyone)) - _bic(self.likelihood, maximum)

    def _merged(self, responsibilities, one, other):
        merged = np.delete(responsibilities, other, axis=1)
        merged[:, one] += responsibilities[:, other]
        return self._best(merged)

    def _best(self, responsibilities):
        """Return the likelihood of fewer experts, and its maximum for these responsibilities."""
        n_experts = responsibilities.shape[1]
        of_row = responsibilities[self.likelihood.unit]
        y, weight, penalty = self.data
        parts = [
            self._regression(self.expert_design, y, weight * own, len(self.classes))
            for own in of_row.T
        ]
        gate = np.log(np.maximum(of_row, np.finfo(float).tiny))
        if self.gate_design is not None and n_experts > 1:
            gate, n = self.gate_design, len(y)
            rows, experts = np.tile(np.arange(n), n_experts), np.repeat(np.arange(n_experts), n)
            repeated = gate.take(rows)
            weights = (weight[:, np.newaxis] * of_row).T.ravel()
            parts.insert(0, self._regression(repeated, experts, weights, n_experts))
        likelihood = Likelihood(
            gate,
            self.expert_design,
            y,
            n_experts=n_experts,
            n_classes=len(self.classes),
            sample_weight=weight,
            group=self.group,
            gate_penalty=penalty if n_experts > 1 else None,
        )
        return likelihood, likelihood.maximise(np.concatenate(parts))

    def _regression(self, design, y, weight, n_classes):
        """Return the parameters of a weighted logistic regression."""
        likelihood = Likelihood(
            np.zeros((len(y), 1)),
            design,
            y,
            n_experts=1,
            n_classes=n_classes,
            sample_weight=weight,
        )
        return likelihood.maximise(np.zeros(likelihood.n_parameters)).parameters

    def notes(self, errors):
        """Return which coefficients have no standard error."""
        unknown = [
            f"{'the gate' if part == 'gate' else f'expert {expert}'}: {name}"
            for (part, expert, _, name, _), is_known in zip(
                self.rows, errors.is_known, strict=True
            )
            if not (is_known or self._is_penalised(part))
        ]
        notes = []
        if self._is_penalised("gate"):
            notes = [
                "No standard errors of the gate: its penalty draws its coefficients towards 0, "
                "and no interval accounts\nfor that. Take regularization=None, with encoder=None "
                "if straight lines are enough for it."
            ]
        if self.omitted:
            names = ", ".join(str(self.names[column]) for column in dict.fromkeys(self.omitted))
            notes.append(f"No coefficient: {names}. Other columns determine it.")
        if not unknown:
            return notes
        listed = "; ".join(dict.fromkeys(unknown[:MOST_NAMED]))
        more = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        return [
            *notes,
            f"No standard error: {listed}{more}.",
            f"These separate the classes, or the experts{errors.where}, so the likelihood rises "
            "as they grow without bound.",
            "Shown are those of the fitted mixture, which l2 of LinearExperts, or the penalty of "
            "the gate, keeps finite.",
        ]


def _bic(likelihood, maximum):
    n_parameters = likelihood.n_parameters
    return n_parameters * np.log(likelihood.n_samples) - 2 * maximum.log_likelihood


def _holm(values):
    """Correct p-values for their number, by Holm's method."""
    values = np.array(values)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(steps, 1)
    return corrected.tolist()


def _numpy(tensor):
    return tensor.detach().cpu().numpy()
