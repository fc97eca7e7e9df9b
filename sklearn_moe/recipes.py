"""What "auto" stands for in the training of ``MoEClassifier``: recipes, as plain data.

The recipe for tables was chosen on eight tables with at most 4,000 training rows, two to six
splits and 100 epochs, one setting at a time. The table shows the mean error in percent and the log
loss. Each line keeps the settings of the lines above it, except those in brackets:

================================================== ===== ======
8 experts of 64 units, scaled features             19.42 0.5409
4 experts of 256 units, weight decay 1             18.71 0.4922
8 experts of 128 units, 8 hat functions a column   17.91 0.4788
competence 1, learning rate 6e-3                   17.50 0.4514
learning rate 1e-2                                 17.45 0.4491
(without hat functions)                            18.40 0.4756
(6e-3 with competence 3)                           17.87 0.4555
learning rate 2e-2                                 17.22 0.4459
(4e-2)                                             17.47 0.4398
weight decay 2 for two classes, 0.5 for more       16.71 0.4392
================================================== ===== ======

Then it was refined on ten tables with three splits; two of these tables were not used above:

================================================== ===== ======
weight decay 0.7 for more than two classes         15.54 0.3917
60 epochs, competence 0.5                          15.50 0.3907
hat functions from 50 rows per column on           15.46 0.3890
(6 of them, weight decay 0.5)                      15.54 0.3859
7 of them, experts of 256 units                    15.37 0.3875
40 epochs, learning rate 3e-2                      15.37 0.3825
================================================== ===== ======

Importance costs no accuracy there, and with it no split has a usage entropy below 0.99 of its
maximum; without it the lowest was 0.17. ``benchmarks/tabular.py`` compares the result with other
classifiers.

The following did not pay. It was tried on one split of eight of the tables. The columns are the
changes of the mean error and of the mean log loss in percent, that of the log loss with the best
temperature for each table (see ``calibrate``), and the time of a fit. The lowest log loss that a
temperature can give the recipe itself is 1.9 % lower:

====================================================== ===== ======== =========== ====
change                                                 error log loss temperature time
====================================================== ===== ======== =========== ====
16 experts                                              -1.2     -0.9        -0.8 1.73
two hidden layers of 256 and 64 units                   +0.8     +5.2        +1.0 1.38
GELU                                                    +2.3     +2.1        +1.5 1.13
dropout of 0.2                                          +1.0     -0.4        +0.1 1.42
each expert without 30 % of the encoded columns         +0.1     -0.2        +0.3 1.05
weight decay from 1/4 to 4 times over the experts       +0.9     +3.9        +1.9 1.06
weight decay times the squared best temperature         +0.9     -1.3        +0.2 1.11
12 hat functions                                        +2.3     +5.1        +3.1 1.19
means of the classes of each category, from folds       +3.0     +2.6        +2.6 1.01
Muon for the experts' first layer (arXiv 2604.15297)    -2.0     +1.7        +0.1 2.97
====================================================== ===== ======== =========== ====

Nor did columns that say on which side of a threshold a value lies, for the eight thresholds of
each column that 30 small boosted trees gain most from. On one split of ten tables the mean error
falls by 2.3 % and the mean log loss rises by 3.7 %, in 1.4 times the time; with twice the weight
decay, which by itself gives +1.1 % and +1.0 %, it is -0.9 % and +0.3 %. letter, adult and
german_credit get better, covertype, dry_bean and bank_marketing worse.

Nor did these, on ten tables, with three splits (*) or one. The columns are the same. The lowest
log loss that a temperature can give the recipe is 2.0 % lower here:

====================================================== ===== ======== =========== ====
change                                                 error log loss temperature time
====================================================== ===== ======== =========== ====
16 experts *                                            +0.1     -0.4        -0.4  2.1
32 experts of 64 units                                  +1.8     -0.2        -0.1  0.9
half of the experts with two layers, or masked columns  +1.4     +1.3        +0.6  1.2
experts with ReLU, GELU and tanh                        +1.3     +0.6        +0.6  1.1
a linear expert beside the others                       +0.5     +0.2        +0.3  1.0
gated linear units *                                    +0.4     +3.7        +1.3  1.3
a constant gate *                                       +1.9     +1.3        +1.6  1.0
a learned scale per column (RealMLP, arXiv 2407.04491)  -0.3     +2.1        +0.3  1.4
beta_1 of 0.95                                          +0.1     +1.1        +0.6  1.0
beta_2 of 0.99                                          +0.7     +0.3        -0.1  1.0
batches of 128                                          +1.4     +0.4        +0.1  1.0
competence 2                                            +1.5     +0.8        +0.8  1.0
noise of 0.3 on the encoded columns *                   +3.6     +1.5        +1.8  1.2
5 % of the encoded values from other rows *             +0.2     -0.8        -0.1  1.2
sharpness-aware steps (SAM, arXiv 2010.01412) *         -0.4     -0.6        -0.1  2.1
labels mixed with boosting's out-of-fold predictions    +2.8     -0.5        +0.1  2.6
====================================================== ===== ======== =========== ====

The last line has seven tables: those labels help where labels are noisy (log loss of german_credit
-5 %, adult -2 %) and harm where they are not (error of spambase and wine_quality +14 and +10 %). A
temperature from the leverages of the experts' last layers, in place of the fits of ``calibrate``,
was above 1 where it should be below, and the reverse.

One split is coarse, and a difference of 2 percent may be chance. What helps one table harms
another. Without 30 % of the columns, the log loss of german_credit falls by 6 % and that of letter
rises by 13 %; a second layer does the opposite.

These tables have at most 4,000 training rows, which are 16 steps per epoch. Weight decay acts in
each step. So with more rows or smaller batches, the same value makes the weights forget sooner
(with 4,000 rows or 30,000, after about 4,000), and in the end experts die. Above 16 steps, weight
decay is therefore multiplied by 16 / steps: the weights then remember the same number of epochs,
as X. Wang and L. Aitchison advise (How to set AdamW's weight decay as you scale model and dataset
size, 2024, arXiv 2405.13698). Above 4,000 rows it is also multiplied by (4,000 / rows) to the
power of 1/4, and the 40 epochs by the same to the power of 0.45: more rows need less of both. From
about 400,000 rows on it is 3 epochs. The table shows error in percent and log loss of one split:
with 40 epochs and a first power of 3/4, as it was before; with fewer epochs; with shape functions,
too (see below); and of HistGradientBoostingClassifier with l2_regularization=1:

================ ======= ============= ============= ============= =============
table               rows before        fewer epochs  with shapes   boosting
================ ======= ============= ============= ============= =============
adult             15,000 13.94  0.326  13.71  0.306  13.08  0.295  13.02  0.289
bank_marketing    15,000 10.96  0.315  10.80  0.295  10.71  0.294  10.71  0.289
covertype         15,000 15.93  0.454  16.26  0.417  16.13  0.420  17.63  0.442
letter            15,000  3.10  0.099   3.10  0.101   2.94  0.097   4.12  0.139
rules             15,000 18.77  0.484  15.66  0.399  14.59  0.390  15.35  0.403
thresholds        15,000 21.82  0.470  21.67  0.460  20.78  0.445  20.93  0.450
adult             36,631               13.22  0.289  12.52  0.276  12.26  0.273
bank_marketing    33,908               10.52  0.284  10.30  0.283  10.31  0.282
covertype         50,000 10.61  0.305  11.99  0.291  11.22  0.284  16.00  0.383
rules             50,000 14.26  0.502  10.75  0.332  10.18  0.326  13.28  0.382
thresholds        50,000 21.80  0.471  20.66  0.443  19.83  0.429  20.24  0.436
covertype        200,000                8.08  0.205   7.59  0.194  13.57  0.345
rules            500,000                7.63  0.275   7.38  0.273  12.38  0.381
================ ======= ============= ============= ============= =============

(``python benchmarks/rows.py``.) Where labels are noisy, more weight decay and fewer epochs are
better; where they are not, the reverse. Of electricity with 30,000 rows, the error after 40 epochs
is 21.6, 19.5 and 18.7 % with a weight decay of 2, 0.2 and 0.02, and of magic with 14,000 it is
12.5, 11.2 and 11.8 %. These values are a compromise. With 20 epochs and 15,000 rows, twice and
four times the weight decay that this was before change the mean error of these tables and of
covertype with two classes by -1.7 and -0.3 %, and the mean log loss by -3.6 and -2.5 %.

More hat functions help where boosting is better, and harm covertype and letter. Beside the 7 of
each column, 32 more that are multiplied by 0.03 lower the mean error of ten tables with 4,000 rows
and two splits by 1.7 % and the log loss by 1.2 %, but a fit takes three times as long, and so
would a prediction. The shape functions, one of each column for all experts (see ``TableEncoder``),
make a fit 1.05 to 1.3 times as long. With 4,000 rows they change the two means by -0.3 and 0.0 %
(eleven tables, three splits), which is chance; with 8,000 by -1.9 and -0.5 % (eight tables, one
split). With more rows they help, as the table shows; its last line is after 4 epochs without them
and 3 with, and a fourth leads to 7.31 and 0.270. Over five splits of the six tables with 15,000
rows, the two means fall by 3.5 and 2.0 %. With two or three functions of each column, or a scale
of 0.2 in place of 0.06, the gain is about the same, and with 34,000 rows and more also with 64
knots. Where the steps between knots are learned in place of the values at them, a third of the
gain is left, and up to three quarters where the functions are added to their columns. Half of the
weight decay raises the log loss by 5.9 %; twice of it lowers the error of rules by 9 % and raises
covertype's by 8 %. With five hat functions in place of seven, rules and letter gain 14 and 9 %,
and covertype loses 4 %, with 50,000 rows 9 %.

In a stream (``partial_fit``), the weight decay is that of one epoch instead of 40. After 24 chunks
of 1,000 rows of covertype, the error is 21.9, 20.7 and 20.6 with 2, 0.3 and 0.05; after 12 chunks
of adult, it is 14.2 with each.

More epochs need as much weight decay as 40 epochs. If it falls in inverse proportion to their
number, the log loss of three linear rules in 30 columns and 3,000 rows rises from 0.479 after 40
epochs to 0.545 after 120.

An attentive gate learns best with a lower learning rate. On digits, with importance or sample
similarity, its log loss is 0.146 with 3e-2 and 0.104 with 1e-2, and its sample entropy is 0.23 and
0.13 bits.

The recipe for linear experts was chosen for the regimes that it finds in the made tables of
``benchmarks/regimes.py``. The figures are the adjusted Rand index of the chosen expert and the
true regime on new rows, as means over three data sets with 2,000 training rows and two fits of
each (three of one start). The last column is *exclusive or*, under a gate with a hidden layer:

=============================================== ======= ======== ========== ===== ============
training                                        sectors clusters thresholds codes exclusive or
=============================================== ======= ======== ========== ===== ============
one start                                       .445    .928     .701       .889  .000
two starts                                      .615    .979     .885       1.000 .197
two starts, one of them annealed                .729    .979     .967       1.000 .197
ten starts                                      .729    .979     .967       1.000 .585
ten starts, annealing in all                    .729    .903     .967       1.000 .000
ten starts, annealing in every second           .729    .979     .967       1.000 .584
(without the sparse gate)                       .632    .821     .846       .802  .154
(sparse gate of 1e-3 for a gate with layers)                                      .386
=============================================== ======= ======== ========== ===== ============

So an annealed start finds the best more often than another, but all of them tend to the same
optimum, and where this is not the best, all are wrong. In adult with a planted subgroup
(*planted, by a category*), the highest penalised likelihood finds the subgroup with a mean index
of .22, and the lowest BIC of three restarts that differ with .90. The learning rate hardly
matters: with 0.1 in place of 0.2, the first four figures of the recipe are the same.

The recipe for a list of classifiers was chosen for a gate that is constant where the data do not
say who is right where. Its experts were gradient boosting, a random forest, the default mixture
and logistic regression; the gate learned from their out-of-fold probabilities. The table shows the
mean error in percent and the log loss on the test rows of ten tables, one split of each:

==================================================== ===== ======
not calibrated, constant gate                        14.44 0.3599
one temperature for each, constant gate              14.33 0.3592
(sparse gate of 1e-3)                                14.29 0.3590
and one factor for all temperatures, constant gate   14.31 0.3552
sparse gate of 1e-3                                  14.28 0.3551
==================================================== ===== ======

CatBoost has 15.38 and 0.3724 there. With one temperature for each, a gate with 3e-4, 3e-3, 1e-2 or
3e-2, and a hidden layer with 1e-3 or 3e-3, have within 0.0001 the same log loss on eight of the
tables. The reason is that columns are dropped by the BIC: in none of the ten tables a column is
left. In a second split of covertype 11 are left, and the log loss falls from 0.5405 to 0.5389. If
no columns are dropped, a gate of 1e-3 raises it in titanic from 0.4345 to 0.4449. The strength
matters where there are regions: there 1e-3 found them best.
"""

from __future__ import annotations

from typing import Any

from sklearn_moe.regularizers import Competence, Importance, SparseGate

_TABLE = {
    "learning_rate": {"one_cycle": 0.03, "constant": 3e-3},
    "weight_decay": {"binary": 2.0, "multiclass": 0.7},
    "regularization": [Importance(0.2), Competence(0.5)],
    "fewest_epochs": 3,
}

_LINEAR = {
    "learning_rate": {"one_cycle": 0.2, "constant": 0.02},
    "weight_decay": {"binary": 0.0, "multiclass": 0.0},
    "regularization": [],
    "n_init": 10,
    "annealing": 0.2,
}

_CLASSIFIERS = {
    "learning_rate": {"one_cycle": 0.03, "constant": 3e-3},
    "weight_decay": {"binary": 0.0, "multiclass": 0.0},
    "regularization": [],
    "n_init": 1,
    "annealing": None,
}

_ONE_START = {"n_init": 1, "annealing": None}

RECIPES: dict[str, dict[str, Any]] = {
    "table": {**_TABLE, **_ONE_START},
    "attentive": {**_TABLE, **_ONE_START, "learning_rate": {"one_cycle": 0.01, "constant": 3e-3}},
    # Images, and networks that a user wrote.
    "other": {
        "learning_rate": {"one_cycle": 3e-3, "constant": 1e-3},
        "weight_decay": {"binary": 0.0, "multiclass": 0.0},
        "regularization": [],
        **_ONE_START,
    },
    # Classifiers that are fitted outside of the net: only the gate learns. For a gate that mixes
    # all of them few large steps are enough, as L-BFGS follows.
    "classifiers": {**_CLASSIFIERS, "regularization": [SparseGate(1e-3)], "batch_size": 4096},
    "classifiers, top k": {**_CLASSIFIERS, "regularization": [SparseGate(1e-3)]},
    "classifiers and others": _CLASSIFIERS,
    # To find regimes.
    "linear": {**_LINEAR, "regularization": [SparseGate(1e-3)]},
    "linear, gate with layers": {**_LINEAR, "regularization": [SparseGate(3e-3)]},
    "linear, no columns": _LINEAR,
}
"""Settings for tables, for tables with an attentive gate, for everything else, and for linear
experts: the learning rate for each schedule, the weight decay by the number of classes, the
regularization, the number of restarts, the annealing, and the fewest epochs of a large table."""

# The samples, steps per epoch and epochs for which the recipes were chosen.
_SAMPLES, _STEPS, _EPOCHS = 4000, 16, 40

# Above this, batches of 512 are as good as those of 256, and faster.
_MANY_SAMPLES = 100_000

# With more, a training takes longer for little.
_SAMPLES_IN_ALL = 1.5e6


def automatic_batch_size(recipe: dict[str, Any], n_samples: int) -> int:
    """Return that of a recipe, or a tenth of the samples, at least 32 and at most 256 or 512."""
    most = 256 if n_samples <= _MANY_SAMPLES else 512
    return recipe.get("batch_size", min(max(n_samples // 10, 32), most))


def automatic_epochs(recipe: dict[str, Any], n_samples: int) -> int:
    """Return 40 epochs, or fewer for a large table."""
    fewer = int(min(_EPOCHS * min(1.0, _SAMPLES / n_samples) ** 0.45, _SAMPLES_IN_ALL / n_samples))
    return max(fewer, recipe.get("fewest_epochs", _EPOCHS))


def automatic_weight_decay(
    recipe: dict[str, Any],
    *,
    n_classes: int,
    n_samples: int,
    batch_size: int,
    epochs: int | None,
) -> float:
    """Return the weight decay of a recipe for a training.

    Parameters
    ----------
    recipe : dict
        One of ``RECIPES``.
    n_classes, n_samples : int
        Number of classes and of training samples.
    batch_size : int
        Largest number of samples of a batch; -1 means all.
    epochs : int or None
        Number of epochs; None means a call of ``partial_fit``.

    Returns
    -------
    float
        In the units of AdamW, which multiplies it by the learning rate.
    """
    decay = recipe["weight_decay"]["binary" if n_classes == 2 else "multiclass"]
    if epochs is None:
        return decay / _EPOCHS
    n_steps = 1 if batch_size == -1 else -(-n_samples // batch_size)
    decay *= min(1.0, _STEPS / n_steps) * min(1.0, _SAMPLES / n_samples) ** 0.25
    # Longer trainings would let unused weights decay to subnormal numbers, which are slow.
    return decay * min(1.0, 3 * _EPOCHS / epochs)
