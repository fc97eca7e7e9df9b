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
from sklearn_moe.training.polish import can_be_polished

COLUMNS = ("part", "expert", "class", "feature", "coefficient", "odds_ratio", "standard_error")
COLUMNS += ("lower", "upper", "p_value")

# A coefficient is not known if more than this share of its variance comes from directions in which
# the likelihood has hardly any curvature.
MOST_UNKNOWN = 0.1

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
            slopes = [
                _numpy(each.slope(gate))[0, used]
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

    @cached_property
    def contrasts(self):
        """Part, expert, class, name and contrast of each coefficient.

        The contrast is None if the samples do not determine the coefficient.
        """
        contrasts = []
        if self.gate_terms is not None:
            for expert in range(1, self.n_experts):
                contrasts += self._contrasts("gate", expert, None, 0, expert - 1)
        for expert in range(self.n_experts):
            for i, label in enumerate(self.classes[1:].tolist()):
                contrasts += self._contrasts("expert", expert, label, expert + 1, i)
        return contrasts

    def words(self):
        """Yield the words and the unit of each term."""
        for terms in (self.gate_terms, self.expert_terms):
            for term in terms.terms if terms else []:
                yield term.words(self.names), terms.unit(term)

    def _contrasts(self, part, expert, label, block, output):
        terms, design = self.expert_terms, self.expert_design
        if part == "gate":
            terms, design = self.gate_terms, self.gate_design
        block = self.likelihood.block(block)
        start = block.start + output * design.columns.shape[1]
        for term in terms.terms:
            contrast = design.contrast(terms.direction(term))
            if contrast is not None:
                placed = np.zeros(self.likelihood.n_parameters)
                placed[start : start + len(contrast)] = contrast
                contrast = placed
            yield part, expert, label, term.words(self.names).feature, contrast

    def coefficients(self, maximum, quantile, *, with_errors):
        """Return the columns of the table of coefficients."""
        table = {name: [] for name in COLUMNS}
        for part, expert, label, name, contrast in self.contrasts:
            value = error = np.nan
            if contrast is not None:
                is_known = with_errors and _is_known(contrast, maximum)
                value = contrast @ (maximum.parameters if is_known else self.parameters)
                if is_known:
                    error = np.sqrt(contrast @ maximum.covariance @ contrast)
            with np.errstate(over="ignore"):
                ratio = np.exp(value)
            row = (part, expert, label, name, value, ratio, error)
            row += (value - quantile * error, value + quantile * error)
            row += (2 * norm.sf(abs(value) / error) if error > 0 else np.nan,)
            for column, each in zip(COLUMNS, row, strict=True):
                table[column].append(each if column in COLUMNS[:4] else float(each))
        return table

    def differences(self, maximum):
        """Return Wald tests of each coefficient being the same in all experts."""
        tests = {name: [] for name in ("class", "feature", "statistic", "degrees_of_freedom")}
        values = []
        by_term = {}
        for part, _, label, name, contrast in self.contrasts:
            if part == "expert":
                by_term.setdefault((label, name), []).append(contrast)
        for (label, name), contrasts in by_term.items():
            if len(contrasts) == 1 or any(
                each is None or not _is_known(each, maximum) for each in contrasts
            ):
                continue
            differences = np.array(contrasts[1:]) - contrasts[0]
            covariance = differences @ maximum.covariance @ differences.T
            value = differences @ maximum.parameters
            statistic = float(value @ np.linalg.solve(covariance, value))
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

    def notes(self, maximum):
        """Return which coefficients have no standard error."""
        unknown = [
            f"{'the gate' if part == 'gate' else f'expert {expert}'}: {name}"
            for part, expert, _, name, contrast in self.contrasts
            if contrast is None or not _is_known(contrast, maximum)
        ]
        notes = []
        if self.omitted:
            names = ", ".join(str(self.names[column]) for column in dict.fromkeys(self.omitted))
            notes = [f"No coefficient: {names}. Other columns determine it."]
        if not unknown:
            return notes
        listed = "; ".join(dict.fromkeys(unknown[:MOST_NAMED]))
        more = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        return [
            *notes,
            f"No standard error: {listed}{more}.",
            "These separate the classes, or the experts, so the likelihood rises as they grow "
            "without bound.",
            "Shown are those of the fitted mixture, which l2 of LinearExperts, or the penalty of "
            "the gate, keeps finite.",
        ]


def _is_known(contrast, maximum):
    """Whether the likelihood determines a contrast."""
    variance = contrast @ maximum.covariance @ contrast
    return np.sum((contrast @ maximum.unknown) ** 2) <= MOST_UNKNOWN * variance


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
