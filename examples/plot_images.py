"""
Images with convolutional experts
=================================

For images, experts are small convolutional networks. The attentive gate may have separate
convolutions, too. Here they see the digits as images of 8 by 8 pixels.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_moe import (
    AttentiveGate,
    ConvEncoder,
    ConvExperts,
    DecompositionDisplay,
    ExpertSamplesDisplay,
    MoEClassifier,
)

images, y = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8) / 16
X_train, X_test, y_train, y_test = train_test_split(images, y, stratify=y, random_state=0)


clf = MoEClassifier(
    n_experts=5,
    experts=ConvExperts(channels=(8,), hidden_layer_sizes=(32,)),
    gate=AttentiveGate((32,), encoder=ConvEncoder(channels=(8,))),
    regularization="sample_similarity",
    max_iter=30,
    random_state=0,
).fit(X_train, y_train)
print(f"accuracy {clf.score(X_test, y_test):.3f}")

# %%
# The digits of each expert
# -------------------------
# Each row has digits of one expert, from the one for which the gate is surest to the one for which
# it is least sure.

ExpertSamplesDisplay.from_estimator(clf, X_test, y_test, n_images=12)
DecompositionDisplay.from_estimator(clf, X_test, y_test)
plt.show()
