"""Random data, parameters and sequences of calls: all is answered well, or refused in our words.

``--fuzz-cases``, ``--fuzz-seed`` and ``--fuzz-case`` say how many cases to draw, from which seed,
and which of them to repeat alone. What a case does is printed, and shown if it fails.
"""

from __future__ import annotations

import warnings
from copy import deepcopy

import numpy as np
from fuzzing import images, tables
from fuzzing.demands import (
    check_answers,
    check_attributes,
    check_refusal,
    check_same,
    in_time,
    supervised,
)
from fuzzing.labels import LABELS, WEIGHTS, draw_codes
from fuzzing.odd import odd_labels, odd_samples, odd_weights
from fuzzing.params import ENCODERS_OF_IMAGES, EXPERTS_OF_IMAGES, draw_params
from fuzzing.tables import Table, pick
from sklearn.base import clone

from sklearn_moe import MoEClassifier

SECONDS = 120  # for a case, on a busy machine

ODDITIES = {
    "nothing": 0.4,
    "samples": 0.15,
    "labels": 0.08,
    "weights": 0.06,
    "parameters": 0.21,
    "questions": 0.1,
}


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption
    number = option("--fuzz-case")
    numbers = range(option("--fuzz-cases")) if number is None else [number]
    metafunc.parametrize("seed, number", [(option("--fuzz-seed"), each) for each in numbers])


def test_any_case_is_answered_or_refused(seed, number):
    print(f"To repeat it: pytest tests/test_fuzz.py --fuzz-seed {seed} --fuzz-case {number}")
    with in_time(SECONDS):
        Case(np.random.default_rng([seed, number])).run()


class Refused:
    """What a call returns that was refused as it should be."""


class Case:
    """A random sequence of calls of one estimator, with one thing at most that is odd.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all that is random.
    """

    def __init__(self, rng):
        self.rng = rng
        self.oddity = pick(rng, ODDITIES, p=list(ODDITIES.values()))
        self.samples = tables.draw_table(rng) if self.chance(0.8) else images.draw_images(rng)
        self.is_table = isinstance(self.samples, Table)
        room = tables if self.is_table else images
        self.containers = room.containers(self.samples)
        self.codes = draw_codes(rng, self.score())
        self.label_kind = pick(rng, LABELS)
        params = draw_params(rng, n_odd=int(self.oddity == "parameters"))
        if not self.is_table:
            params.update(self.params_of_images())
        self.container = self.draw_container()
        self.clf = MoEClassifier(**params)
        self.twin = clone(self.clf)
        self.done = []  # what the twin has to do to become equal
        self.was_refused = False
        print(f"{self.samples if self.is_table else self.samples.shape} as {self.container}")
        print(self.clf)

    def run(self):
        if self.chance(0.1):
            self.call("predict", self.clf.predict, self.hold(self.samples))
        for step in range(pick(self.rng, [1, 2, 3], p=[0.6, 0.2, 0.2])):
            if step > 0:
                self.change()
            self.train()
        if self.is_fitted:
            self.ask()
            self.repeat()
        if self.oddity == "nothing":
            self.compare()

    # What is drawn

    def chance(self, share):
        return self.rng.uniform() < share

    def score(self):
        """Return what the classes of the samples depend on."""
        if self.is_table:
            first = next(iter(self.samples.columns.values()))
            return np.unique(first.astype(str), return_inverse=True)[1]
        return self.samples.reshape(len(self.samples), -1).astype(float).mean(axis=1)

    def params_of_images(self):
        params = {"categorical_features": "from_dtype"}
        if self.chance(0.4):
            params["experts"] = pick(self.rng, EXPERTS_OF_IMAGES)
        if self.chance(0.5):
            params["encoder"] = pick(self.rng, ENCODERS_OF_IMAGES)
        if self.chance(0.3):
            params["input_shape"] = self.samples.shape[1:]
            self.samples = self.samples.reshape(len(self.samples), -1)
        return params

    def draw_container(self):
        """Return the name of a container that can hold the samples."""
        while True:
            name = pick(self.rng, self.containers)
            if self.containers[name](self.samples) is not None:
                return name
            del self.containers[name]

    def hold(self, samples):
        return self.containers[self.container](samples)

    def labels(self, rows):
        return LABELS[self.label_kind](self.codes[rows])

    def odd(self, draw, *args):
        options = draw(self.rng, *args)
        name = pick(self.rng, options)
        # What is odd may be so to numpy, too, which is not what is tested.
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f"{name} ", options[name]()

    def numbers(self, n):
        """Return numbers of which odd samples are made."""
        if self.is_table and not self.samples.text:
            return np.resize(self.samples.array(), (n, len(self.samples.columns)))
        return self.rng.normal(size=(n, 2))

    # Calls

    @property
    def is_fitted(self):
        return hasattr(self.clf, "net_")

    def call(self, what, function, *args, **kwargs):
        """Call a method, and return what it returns, or `Refused` if it does so in our words."""
        print(what)
        with supervised((args, kwargs)):
            try:
                return function(*args, **kwargs)
            except (ValueError, TypeError, MemoryError) as error:
                check_refusal(error)
                print(f"    {type(error).__name__}: {error}")
                return Refused

    def change(self):
        """Change some parameters."""
        params = draw_params(self.rng)
        names = self.rng.choice(list(params), pick(self.rng, [0, 1, 2]), replace=False).tolist()
        if self.chance(0.5):
            names = [name for name in names if name not in ("experts", "gate", "n_experts")]
        changed = {name: params[name] for name in names}
        if self.chance(0.5):
            changed["warm_start"] = True
        if self.chance(0.05):
            changed = {"nonsense": 1}
        copied = deepcopy(changed)
        done = self.call(f"set_params {changed}", self.clf.set_params, **changed)
        if done is not Refused:
            self.done.append(("set_params", (), copied))

    def train(self):
        """Fit, perhaps to a part of the samples, or to an odd thing."""
        rng, n = self.rng, len(self.samples)
        rows = np.arange(n)
        incremental = self.chance(0.25)
        if self.chance(0.2 + 0.4 * incremental):
            rows = rng.choice(n, rng.integers(1, n + 1), replace=False)
        X, y, weight = self.hold(self.samples[rows]), self.labels(rows), None
        what = f"{'partial_fit' if incremental else 'fit'} {len(rows)} rows, "
        y_kind, weight_kind = f"{self.label_kind} as labels ", ""
        if self.chance(0.3):
            weight_kind = pick(rng, WEIGHTS)
            weight = WEIGHTS[weight_kind](rng, len(rows))
        if self.oddity == "samples":
            x_kind, X = self.odd(odd_samples, self.numbers(len(rows)))
            what += x_kind
        if self.oddity == "labels":
            y_kind, y = self.odd(odd_labels, self.codes[rows])
        if self.oddity == "weights":
            weight_kind, weight = self.odd(odd_weights, len(rows))
        kwargs = {"sample_weight": weight}
        if incremental:
            if not self.is_fitted or self.chance(0.3):
                kwargs["classes"] = np.unique(np.asarray(self.labels(np.arange(n))))
        elif self.chance(0.2):
            kwargs.update(self.validation())
        print_of = ", ".join(kwargs)
        before = self.answer() if self.is_fitted else None
        method = self.clf.partial_fit if incremental else self.clf.fit
        done = self.call(f"{what}{y_kind}{weight_kind}; {print_of}", method, X, y, **kwargs)
        if done is Refused:
            self.was_refused = True
            self.check_unchanged(before)
        else:
            assert done is self.clf
            self.done.append((method.__name__, (X, y), kwargs))
            check_attributes(self.clf)
            with supervised(X):
                check_answers(self.clf, X, len(rows))

    def validation(self):
        """Return a validation set, perhaps an odd one."""
        rows = self.rng.choice(len(self.samples), self.rng.integers(1, 9))
        X, y = self.hold(self.samples[rows]), self.labels(rows)
        kwargs = {"X_val": X, "y_val": y}
        if self.chance(0.3):
            kwargs["sample_weight_val"] = WEIGHTS[pick(self.rng, WEIGHTS)](self.rng, len(rows))
        if self.chance(0.2):
            kwargs["X_val"] = self.odd(odd_samples, self.numbers(len(rows)))[1]
        if self.chance(0.1):
            kwargs["y_val"] = self.odd(odd_labels, self.codes[rows])[1]
        if self.chance(0.1):
            kwargs["sample_weight_val"] = self.odd(odd_weights, len(rows))[1]
        return kwargs

    def check_unchanged(self, before):
        """A refused training leaves no mixture, or the one that was there."""
        if before is None:
            assert not self.is_fitted
        else:
            check_equal(self.answer(), before)

    # Questions

    def ask(self):
        """Ask the fitted mixture about samples in all forms."""
        expected = self.answer()
        if expected is Refused:  # it was fitted to something odd
            return
        n = len(self.samples)
        for _ in range(3):
            name = pick(self.rng, self.containers)
            if self.containers[name](self.samples) is not None:
                self.check_other_container(self.predict(name, self.samples), expected)
        for row in self.rng.choice(n, min(n, 2), replace=False).tolist():
            one = self.predict(self.container, self.samples[[row]])
            np.testing.assert_allclose(one, expected[[row]], atol=1e-6)
        if self.is_table and self.oddity != "samples":
            self.ask_about_other_columns()
        self.predict(self.container, self.samples[:0])
        if self.oddity == "questions":
            for _ in range(3):
                kind, X = self.odd(odd_samples, self.numbers(n))
                proba = self.call(f"predict {kind}", self.clf.predict_proba, X)
                assert proba is Refused or np.isfinite(proba).all()
        check_equal(self.answer(), expected)

    def answer(self, clf=None):
        """Return the probabilities that a mixture, or this one, predicts for the samples."""
        clf = self.clf if clf is None else clf
        return self.call("predict", clf.predict_proba, self.hold(self.samples))

    def predict(self, container, samples):
        what = f"predict {len(samples)} rows as {container}"
        return self.call(what, self.clf.predict_proba, self.containers[container](samples))

    def check_other_container(self, proba, expected):
        """Another container is refused only for the scale of images, or for odd names in fit."""
        may_be_refused = not self.is_table or self.oddity == "samples"
        if proba is not Refused or not may_be_refused:
            check_equal(proba, expected)

    def ask_about_other_columns(self):
        columns = self.samples.columns
        if len(columns) > 1:
            fewer = Table(dict(list(columns.items())[1:]))
            assert self.predict(self.container, fewer) is Refused
        more = Table({**columns, "another": np.zeros(len(self.samples))})
        assert self.predict(self.container, more) is Refused
        renamed = Table({f"new {name}": values for name, values in columns.items()})
        proba = self.predict(self.container, renamed)
        assert (proba is Refused) == hasattr(self.clf, "feature_names_in_")

    # Repetitions

    def repeat(self):
        """The same calls, without those that were refused, give the same bits."""
        if self.was_refused and isinstance(self.clf.random_state, np.random.RandomState):
            return  # a refused training has drawn from it
        print("repeat")
        for method, args, kwargs in self.done:
            with supervised(args):
                getattr(self.twin, method)(*args, **kwargs)
        assert self.twin.loss_curve_ == self.clf.loss_curve_
        check_equal(self.answer(self.twin), self.answer())

    def compare(self):
        """Equal values in another container, and samples without weight, change nothing."""
        everything = np.arange(len(self.samples))
        expected = self.fit_and_predict(self.container, everything)
        if self.is_table and not self.names_columns():
            name = self.draw_container()
            check_equal(self.fit_and_predict(name, everything), expected)
        rows = np.flatnonzero(self.rng.uniform(size=len(everything)) < 0.7)
        all_classes = len(np.unique(self.codes[rows])) == len(np.unique(self.codes))
        if all_classes and self.kinds(rows) == self.kinds(everything):
            weight = np.zeros(len(everything))
            weight[rows] = self.rng.uniform(0.5, 2, len(rows))
            check_equal(
                self.fit_and_predict(self.container, everything, weight),
                self.fit_and_predict(self.container, rows, weight[rows]),
            )

    def kinds(self, rows):
        """Return the types of the values in each column, which say what a column holds."""
        columns = self.samples.columns.values() if self.is_table else []
        return [set(map(type, values[rows].tolist())) for values in columns]

    def names_columns(self):
        return "column 0" in np.asarray(self.clf.categorical_features, dtype=object)

    def fit_and_predict(self, container, rows, weight=None):
        what = f"fit {len(rows)} rows as {container}"
        X, clf = self.containers[container](self.samples[rows]), clone(self.clf)
        if self.call(what, clf.fit, X, self.labels(rows), weight) is Refused:
            return Refused
        return self.answer(clf)


def check_equal(one, other):
    """Both are refused, or both are equal."""
    if one is Refused or other is Refused:
        assert one is other, "One is refused, the other is not"
    else:
        check_same(one, other)
