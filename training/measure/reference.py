"""The real digits used as reference for all metrics."""

import torch

from training import data
from training.measure import extractor, metrics
from training.measure.samples import in_proportion

# Common mistakes when saving digits to a file, as functions of pixels uint8 `[N, 28, 28]`.
DISTORTIONS = {
    "inverted (white where it should be black)": lambda pixels: 255 - pixels,
    "transposed (rows and columns exchanged)": lambda pixels: pixels.mT,
    "mirrored": lambda pixels: pixels.flip(2),
    "upside down": lambda pixels: pixels.flip(1),
    "rotated by 90° to the left": lambda pixels: pixels.rot90(-1, (1, 2)),
    "rotated by 90° to the right": lambda pixels: pixels.rot90(1, (1, 2)),
    "rotated by 180°": lambda pixels: pixels.flip(1, 2),
    "in the range 0 to 1 (they should be 0 to 255)": lambda pixels: 255 * pixels,
}
DOUBTFUL, CLEAR, LOOKED_AT = 0.8, 0.9, 1000  # accuracy as given, accuracy once corrected; digits checked
CAS_STEPS = 2350  # of 128 digits: five passes over 60,000


class Reference:
    """The features of the real training and test digits, and metrics of other digits against them."""

    def __init__(self, device: torch.device, data_root: str):
        self.device = device
        self.extractor, self.notes = extractor.load(device)
        self.train, self.train_labels = in_proportion(*data.load("mnist", data_root), seed=0)
        self.test, self.test_labels = in_proportion(*data.load("mnist", data_root, train=False), seed=0)
        self.test_features, self.test_predictions = extractor.extract(self.extractor, self.test)
        right = extractor.accuracy(self.test_predictions, self.test_labels)
        if abs(right - self.notes["accuracy"]) > 0.001:
            raise ValueError(
                f"{extractor.PATH} is damaged: its accuracy on the real test digits is {right:.2%}, not "
                f"{self.notes['accuracy']:.2%}; train it again with: {extractor.AGAIN}"
            )
        self.train_features, _ = extractor.extract(self.extractor, self.train)
        self.real_metrics = {}  # by count

    def compare(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[dict, dict]:
        """The metrics of digits `[N, 28, 28]`, and those of the same number of real ones.

        The real ones are test digits against the training set, and for `fd_test` training digits against the test set.
        """
        features, predictions = extractor.extract(self.extractor, pixels)
        real = self.real(len(pixels))
        drawn = {
            "fd_train": metrics.frechet(features, self.train_features),
            "fd_test": metrics.frechet(features, self.test_features),
            **metrics.prdc(features, self.train_features[: len(pixels)]),
            "accuracy": extractor.accuracy(predictions, labels),
        }
        return {"fd_ratio": drawn["fd_train"] / real["fd_train"], **drawn}, {"fd_ratio": 1.0, **real}

    def real(self, count: int) -> dict:
        """The metrics of `count` real digits."""
        if count not in self.real_metrics:
            train, test = self.train_features[:count], self.test_features[:count]
            self.real_metrics[count] = {
                "fd_train": metrics.frechet(test, self.train_features),
                "fd_test": metrics.frechet(train, self.test_features),
                "fd_train_subset": metrics.frechet(train, self.train_features),
                **metrics.prdc(test, train),
                "accuracy": extractor.accuracy(self.test_predictions[:count], self.test_labels[:count]),
            }
        return self.real_metrics[count]

    def doubt(self, pixels: torch.Tensor, labels: torch.Tensor) -> str:
        """The likely fault of digits `[N, 28, 28]`; "" if most of them match their labels."""

        def right(change) -> float:
            return extractor.accuracy(
                extractor.extract(self.extractor, change(pixels[:LOOKED_AT]))[1], labels[:LOOKED_AT]
            )

        if (given := right(lambda pixels: pixels)) >= DOUBTFUL:
            return ""
        accuracies = {name: right(change) for name, change in DISTORTIONS.items()}
        name = max(accuracies, key=accuracies.get)
        look = f"they look {name}" if accuracies[name] >= CLEAR else "they may not be digits, or the labels are wrong"
        return f"only {given:.0%} of these digits match their labels; {look}"

    def cas(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[dict, dict]:
        """Classification accuracy score (CAS; Ravuri & Vinyals, arXiv 1905.10887).

        The accuracy on the real test set of a classifier trained only on these digits `[N, 28, 28]`, and that of one
        trained on as many real training digits.
        """
        scores = []
        for taught in ((pixels, labels), (self.train[: len(pixels)], self.train_labels[: len(pixels)])):
            classifier = extractor.fit(*taught, CAS_STEPS, self.device)
            predictions = extractor.extract(classifier, self.test)[1]
            scores.append({"cas": extractor.accuracy(predictions, self.test_labels)})
        return scores[0], scores[1]
