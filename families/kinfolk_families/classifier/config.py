"""What a recipe may say about the classifier."""

from pydantic import Field

from kinfolk.contract import Config, OptimizerConfig, SamplerOptions


class ClassifierConfig(Config):
    """A convolutional network for images, a perceptron for vectors."""

    width: int = Field(32, ge=8, le=512, multiple_of=8)  # channels at full resolution, or units of a hidden layer
    depth: int = Field(1, ge=1, le=8)  # residual convolutions per resolution, or hidden layers
    features: int = Field(64, ge=2, le=2048)  # dimensions of what ``encode`` returns
    max_shift: int = Field(0, ge=0)  # images are moved by up to so many pixels each way in training
    label_smoothing: float = Field(0.0, ge=0, lt=1)  # share of the target spread over all classes
    optimizer: OptimizerConfig = OptimizerConfig()


class ClassifierOptions(SamplerOptions):
    """A classifier draws no samples, so there is nothing to choose."""
