"""Names of the kinds of experts, by what they read."""

from sklearn_moe import EXPERTS

OF_IMAGES = sorted(name for name, experts in EXPERTS.items() if experts.needs_images)

# Without "strong", of which a fit takes long.
OF_TABLES = sorted(set(EXPERTS) - {*OF_IMAGES, "strong"})
