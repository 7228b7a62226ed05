"""What each figure is, in one sentence, and which way is better: every number a user sees says what it is."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a figure says."""

    text: str
    better: Literal["lower", "higher"] | None  # None: neither, or models of different kinds do not compare


MEANING = {
    "fd_local": Meaning(
        "Fréchet distance to the train split on features of a local classifier, each class counted as often as there; "
        "not FID.",
        "lower",
    ),
    "fd_local_test": Meaning(
        "The same distance for the real test split: what a perfect model would reach, up to sample size.", None
    ),
    "kd_local": Meaning(
        "Kernel distance (unbiased, cubic) to the train split on the same features and by the same count.", "lower"
    ),
    "precision": Meaning("Share of samples inside the real data's 5-neighbour balls.", "higher"),
    "recall": Meaning("Share of real data inside the samples' 5-neighbour balls.", "higher"),
    "density": Meaning("Real 5-neighbour balls a sample lies in, over 5; may exceed 1.", "higher"),
    "coverage": Meaning("Share of real 5-neighbour balls that hold a sample.", "higher"),
    "modes": Meaning("Modes of the data that hold a sample, by the rule of its paper.", "higher"),
    "high_quality": Meaning("Share of samples within 3 standard deviations of the nearest mode.", "higher"),
    "mode_spread": Meaning(
        "Root mean square distance of those to their mode, in shares of the data's own: 1 is right, 0 a point.", None
    ),
    "kl_to_uniform": Meaning(
        "KL divergence of the histogram over modes from the uniform, nats; depends on the number of samples.", "lower"
    ),
    "kl_floor": Meaning("What an ideal sampler scores in kl_to_uniform, on average, with as many samples.", None),
    "mode_samples": Meaning("Samples that the count of modes rests on.", None),
    "class_accuracy": Meaning("Share of samples that the local classifier takes for the class asked for.", "higher"),
    "classes_covered": Meaning("Classes of which a sample was recognised.", "higher"),
    "test_accuracy": Meaning("Share of the test split classified correctly.", "higher"),
    "pairwise_distance": Meaning("Mean distance between two samples in feature space.", None),
    "distance_within_classes": Meaning("The same between two samples of one class, averaged over classes.", None),
    "vendi": Meaning("Effective number of different samples in feature space, of at most 1,000.", "higher"),
    "samples_per_second": Meaning(
        "Sampling speed on this machine in batches of 64, with the options that were measured.", "higher"
    ),
    "nfe": Meaning("Network evaluations for one sample.", "lower"),
    "parameters": Meaning("Parameters of the model, those of its parents not counted.", None),
    "reconstruction_mse": Meaning("Mean squared error of reconstructed test samples, data in [-1, 1].", "lower"),
    "completion_mse": Meaning(
        "Mean squared error of hidden patches of test samples, completed from the rest, data in [-1, 1].", "lower"
    ),
    "log_prob_nats": Meaning("Exact log-probability of the test split, nats a sample.", "higher"),
    "log_prob_bits_per_dim": Meaning("The exact log-probability as bits per dimension.", "lower"),
    "elbo_nats": Meaning("Lower bound of the test split's log-probability, nats a sample.", "higher"),
    "elbo_bits_per_dim": Meaning("The bound as bits per dimension: the true figure is lower.", "lower"),
    "importance_bound_nats": Meaning("Tighter lower bound, from the number of draws given: nats a sample.", "higher"),
    "importance_bound_bits_per_dim": Meaning(
        "The tighter bound as bits per dimension: the true figure is lower.", "lower"
    ),
    "importance_bound_binary_nats": Meaning("The tighter bound for the binarised test split, nats a sample.", "higher"),
    "importance_bound_binary_bits_per_dim": Meaning(
        "The tighter bound for binarised data as bits per dimension: the true figure is lower.", "lower"
    ),
    "importance_bound_density_nats": Meaning("The tighter bound of the log-density, nats a sample.", None),
    "ode_log_prob_nats": Meaning("Log-probability by the probability-flow ODE with dequantisation, nats.", "higher"),
    "ode_log_prob_bits_per_dim": Meaning("The ODE's log-probability as bits per dimension.", "lower"),
    "ode_log_prob_binary_nats": Meaning("The ODE's log-probability of the binarised test split, nats.", "higher"),
    "ode_log_prob_binary_bits_per_dim": Meaning(
        "The ODE's log-probability of binarised data as bits per dimension.", "lower"
    ),
    "ode_log_prob_density_nats": Meaning("Log-density by the probability-flow ODE, nats a sample.", None),
    "log_prob_binary_nats": Meaning("Exact log-probability of the binarised test split, nats a sample.", "higher"),
    "log_prob_binary_bits_per_dim": Meaning(
        "The exact log-probability of binarised data as bits per dimension.", "lower"
    ),
    "likelihood_rows": Meaning("Test samples that the log-probabilities rest on, from the first.", None),
    "importance_draws": Meaning("Draws behind each importance_bound; more make it tighter.", None),
    "auroc_rest": Meaning(
        "AUROC of the anomaly score: classes not trained on against those that were. 0.5 is chance.", "higher"
    ),
    "auroc_against": Meaning(
        "AUROC of the anomaly score: samples of another data set against the test split. 0.5 is chance.", "higher"
    ),
    "codebook_usage": Meaning("Share of codes that occur in the encoded test split.", "higher"),
    "codebook_perplexity": Meaning("Effective number of codes in use on the test split.", "higher"),
    "elbo_binary_nats": Meaning("Lower bound for the binarised test split, nats a sample.", "higher"),
    "elbo_binary_bits_per_dim": Meaning(
        "The bound for binarised data as bits per dimension: the true figure is lower.", "lower"
    ),
    "elbo_density_nats": Meaning(
        "Lower bound of the test split's log-density, nats a sample; no bits per dimension exist.", None
    ),
    "log_prob_codes_nats": Meaning(
        "Exact log-probability of the tokens that stand for the test split, nats a sample: not that of the samples. "
        "Higher is better among models of the same tokens, of one first stage or palette.",
        None,
    ),
    "log_prob_density_nats": Meaning("Exact log-density of the test split, nats a sample.", None),
}
