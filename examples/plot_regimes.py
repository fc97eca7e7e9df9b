"""
Which patients follow which rule?
=================================

A drug is broken down quickly by some patients and slowly by others. For the first, more of it is
better, and it wears off within hours. For the others, the same dose is too much. Nobody has
measured who is who. A mixture of logistic regressions finds it in the patients' visits, and also
what tells the two kinds apart.

The table is made here, so that we know the truth, and no table that comes with scikit-learn has
several rows for each patient.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, log_loss

from sklearn_moe import MoEClassifier, decomposition_stability

rng = np.random.default_rng(0)
N_PATIENTS, N_VISITS = 500, 4

people = pd.DataFrame(
    {
        "age": rng.integers(20, 85, N_PATIENTS),
        "weight": rng.normal(75, 12, N_PATIENTS).round(),
        "enzyme": rng.normal(50, 15, N_PATIENTS).round(1),
        "smokes": rng.choice(["yes", "no"], N_PATIENTS, p=[0.3, 0.7]),
    }
)
# The enzyme breaks the drug down, and smoking makes more of the enzyme. Chance does the rest.
speed = (people["enzyme"] - 50) / 15 + 1.5 * (people["smokes"] == "yes") - 0.4
true_gate = 1 / (1 + np.exp(-5 * speed.to_numpy()))
fast = rng.random(N_PATIENTS) < true_gate

patient = np.repeat(np.arange(N_PATIENTS), N_VISITS)
X = people.iloc[patient].reset_index(drop=True)
X["dose"] = rng.uniform(20, 80, len(X)).round()
X["hours"] = rng.uniform(0, 12, len(X)).round(1)
X["stress"] = rng.normal(5, 2, len(X)).round(1)
of_fast = 0.10 * (X["dose"] - 50) - 0.6 * (X["hours"] - 6) - 0.3 * (X["stress"] - 5)
of_slow = -0.12 * (X["dose"] - 50) + 0.3 * (X["hours"] - 6) - 0.3 * (X["stress"] - 5)
log_odds = np.where(fast[patient], of_fast, of_slow)
y = np.where(rng.random(len(X)) < 1 / (1 + np.exp(-log_odds)), "well", "unwell")
print(X.assign(patient=patient, y=y).head(3).to_string())

# %%
# All visits of a patient get one expert
# --------------------------------------
# ``groups`` says which visits belong together. The gate then reads the columns that are constant
# for each patient. A hundred patients are kept for a test.

train = patient < 400
clf = MoEClassifier(2, experts="linear", random_state=0)
clf.fit(X[train], y[train], groups=patient[train])
one = MoEClassifier(1, experts="linear", random_state=0).fit(X[train], y[train])

new, kind = X[~train], fast[patient][~train]
print(f"the gate uses        {clf.gate_columns_}")
print(f"ARI of experts       {adjusted_rand_score(kind, clf.apply(new)):.2f} on new patients")
print(f"ARI of the true gate {adjusted_rand_score(kind, true_gate[patient][~train] > 0.5):.2f}")
for name, model in {"one expert": one, "two experts": clf}.items():
    print(f"log loss, {name:11} {log_loss(y[~train], model.predict_proba(new)):.2f}")

# %%
# Nobody told the gate which columns matter. It uses the two that do, and is as good as the gate
# that made the data. The rest is chance, which no column knows. But the visits of a patient know
# it: what happened in them says which expert was right.

of_visits = pd.DataFrame(clf.expert_log_likelihood(new, y[~train])).groupby(patient[~train]).sum()
of_gate = np.log(pd.DataFrame(clf.gate_proba(new)).groupby(patient[~train]).first())
told_apart = (of_gate + of_visits).to_numpy().argmax(axis=1)
print(f"ARI with visits      {adjusted_rand_score(fast[400:], told_apart):.2f}")

# %%
# How far it holds
# ----------------
# The mixture is fitted again to visits that are drawn anew.

stability = decomposition_stability(
    clf,
    X[train],
    y[train],
    resample="bootstrap",
    n_refits=5,
    params={"groups": patient[train]},
    random_state=0,
)
print(stability)

# %%
# What the experts say
# --------------------
# On the left are the rules: by how much the log-odds of being well change with a column, per
# standard deviation. The patients' own columns matter little there, as it should be. On the right
# is the gate, with a line for smokers and one for others.

weight = clf.module_.experts.weight.detach().cpu().numpy()
names = clf.encoder_.get_feature_names_out(X.columns)[clf.module_.expert_columns]
rules = pd.DataFrame(weight[:, 1] - weight[:, 0], columns=names)
first = rules["dose"].argmax()
rules = rules.rename(index={first: "more is better", 1 - first: "less is better"})

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
rules.T.iloc[::-1].plot.barh(ax=left, color={"more is better": "C0", "less is better": "C1"})
left.axvline(0, color="black", lw=0.8)
left.set(xlabel="log-odds of being well, per standard deviation", title="What experts go by")

share = clf.gate_proba(X[::N_VISITS])[:, first]
for answer, color in {"yes": "tab:red", "no": "tab:gray"}.items():
    rows = np.flatnonzero(people["smokes"] == answer)
    rows = rows[people["enzyme"].to_numpy()[rows].argsort()]
    label = "smokers" if answer == "yes" else "others"
    right.plot(people["enzyme"].iloc[rows], share[rows], color=color, label=label)
    right.plot(people["enzyme"].iloc[rows], true_gate[rows], ":", color=color)
right.plot([], [], ":", color="black", label="the truth (dotted, for each)")
right.legend()
right.set(
    xlabel="enzyme", ylabel='gate probability of "more is better"', title="Who gets which expert"
)
plt.show()
