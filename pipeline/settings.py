"""The typed settings of every stage, as they stand in params.yaml.

Every key is required, and no other is known: what trained a network can be read off params.yaml
alone, and a misspelt key is refused instead of ignored. Settings of the machine (device, workers)
are not here: they change how fast a result is there, never which.
"""

import re
from collections import Counter
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from pipeline.surgeries import SET_NAME, Split, split_of, surgery_id

UNLABELLED = "unlabelled"  # stands where a labelled frame names its anatomy


def is_own(architecture: str) -> bool:
    """Whether it names a network that the user has added: own_<name>."""
    return re.fullmatch(r"own_\w+", architecture) is not None


def _own_network(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    return value if isinstance(value, str) and is_own(value) else validate(value)


Architecture = Annotated[
    Literal[
        "segformer_b0",
        "segformer_b3",
        "deeplabv3_resnet18",
        "deeplabv3_resnet50",
        "deeplabv3_efficientnet_b0",
        "deeplabv3_efficientnet_b3",
        "deeplabv3_efficientnet_lite0",
        "mininetv2",
    ],
    WrapValidator(_own_network),
]
# IEEE float32; float32 whose products may be TF32 on CUDA; autocast to bfloat16; to float16, with a
# gradient scaler.
Precision = Literal["32-true", "tf32", "bf16-mixed", "16-mixed"]
SelectBy = Literal["own", "known"]
Decoders = Literal["separate", "shared"]  # one per anatomy, or one for all of them
PositiveInt = Annotated[int, Field(strict=True, ge=1)]
Side = Annotated[int, Field(strict=True, ge=1, le=8192)]  # of a frame, in pixels
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]


def _number(value: object) -> object:
    """Accept 5e-4, which YAML 1.1 reads as a string because it lacks a dot."""
    if isinstance(value, bool):
        raise ValueError("a number is wanted")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number), Field(strict=False, allow_inf_nan=False)]
Rate = Annotated[Number, Field(gt=0, lt=1)]
Fraction = Annotated[Number, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of all sections: unknown keys are refused, values cannot change."""

    # The docstring below a key is its description in docs/reference/settings.md.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _surgery(value: object) -> object:
    """The id of a surgery's folder, as it is compared everywhere."""
    if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
        raise ValueError(f"the name of a surgery's folder is wanted, found {value!r}")
    return surgery_id(value)


def _surgeries(value: object) -> object:
    if isinstance(value, list | tuple):
        return value
    example = value if value and isinstance(value, int | str) else "02"
    raise ValueError(f"a list of surgeries is expected, such as [{example}], found {value!r}")


Surgery = Annotated[int | str, BeforeValidator(_surgery)]
Surgeries = Annotated[list[Surgery], BeforeValidator(_surgeries)]


class Splits(Settings):
    """Surgery ids of the validation and test splits; every other surgery trains."""

    val: Surgeries
    """Surgeries whose Dice chooses epochs. The name of a folder, or its number."""
    test: Surgeries
    """Surgeries that are reported. Nothing is chosen by them."""

    @model_validator(mode="after")
    def _apart(self) -> "Splits":
        both = sorted(set(self.val) & set(self.test), key=str)
        if both:
            raise ValueError(f"a surgery cannot be in val and in test: {both}")
        return self

    def of(self, surgery: str) -> Split:
        """The split of a surgery by the name of its folder."""
        return split_of(surgery, self.val, self.test)


class Phantom(Settings):
    """The embedded data set: a procedural laparoscopic phantom."""

    seed: Seed
    """Of its surgeries and frames."""
    surgeries: PositiveInt
    """Number of surgeries, called 01, 02, ..."""
    frames: PositiveInt
    """Frames per anatomy and surgery."""
    image_size: tuple[Side, Side]
    """Height and width in pixels, before `data.image_size`."""
    difficulty: Fraction
    """How far colours and light differ between surgeries, and how much smoke, noise and blur there
    is."""


def _can_name_an_anatomy(name: str) -> bool:
    """Whether a name can be a folder, an item of a list, and a word in double quotes.

    It is part of paths, of stages' names, and of commands that a shell reads.
    """
    return bool(re.fullmatch(r"(?![.\- ])[^/@:$`\\'\"\x00-\x1f\x7f]{1,100}(?<! )", name))


def _whole_path(value: str) -> str:
    if value.startswith("~") or "$" in value:
        raise ValueError(
            f"{value} is taken as it is written, ~ and $ are not replaced: write the whole path"
        )
    return value


def _no_list(value: object) -> object:
    if isinstance(value, list):
        raise ValueError("is one folder: name each further data set in data.others")
    return value


Folder = Annotated[str, Field(min_length=1), AfterValidator(_whole_path), BeforeValidator(_no_list)]


class OtherSet(Settings):
    """One more data set, of ``data.others``."""

    root: Folder
    """Its folder."""
    rename: dict[str, str] = {}
    """From its anatomies' names to those of `data.anatomies`. May be left out."""


SetName = Annotated[str, Field(pattern=f"^{SET_NAME}$")]


class Data(Settings):
    """Section ``data``: where the frames are, which anatomies, at which size, and who is tested."""

    root: Folder
    """Folder in DSAD's layout, or of complete label maps. An absolute path works everywhere."""
    others: dict[SetName, OtherSet]
    """More data sets, each as `name: {root: .., rename: {theirs: ours}}`. Their surgeries are
    called `name.folder`."""
    unlabelled_root: Folder
    """Folder `<surgery>/*.png` of frames without masks, of training surgeries. They are learnt from
    the teachers' logits alone. May be empty."""
    anatomies: Annotated[list[str], Field(min_length=1)]
    """Names of the anatomies: one teacher and one student decoder each, in this order."""
    image_size: tuple[Side, Side]
    """Height and width in pixels of all frames that are prepared. The aspect is not kept."""
    splits: Splits
    """Surgeries of validation and test. All others train."""
    phantom: Phantom
    """The embedded data set, used while `data.root` is `data/phantom`."""

    @model_validator(mode="after")
    def _names(self) -> "Data":
        # As disks of macOS and Windows compare names.
        times = Counter(name.casefold() for name in self.anatomies)
        twice = dict.fromkeys(name for name in self.anatomies if times[name.casefold()] > 1)
        if twice:
            raise ValueError(f"anatomies are listed twice: {', '.join(twice)}")
        if UNLABELLED in self.anatomies:
            raise ValueError(
                f"'{UNLABELLED}' cannot name an anatomy: frames without a label are kept under it"
            )
        if "mean" in self.anatomies:
            raise ValueError("'mean' cannot name an anatomy: means stand under it in the metrics")
        for anatomy in self.anatomies:
            if not _can_name_an_anatomy(anatomy):
                raise ValueError(
                    f"{anatomy!r} cannot name an anatomy: / \\ @ : $ ` quotes, control "
                    "characters, a leading dot or dash, spaces around it and more than 100 "
                    "characters are refused"
                )
        return self


class Training(Settings):
    """Section ``student``: one network for all anatomies, and how it is trained."""

    arch: Architecture
    """The network: one of `mtkd models`, or `own_<name>`."""
    decoders: Decoders
    """One decoder per anatomy, or one for all of them. A teacher has one anatomy."""
    pretrained: str
    """Initial weights of the encoder: `none`, `imagenet`, or for SegFormer a hub id or a folder."""
    epochs: PositiveInt
    """Passes over the training frames."""
    # Batch norm after global pooling needs two frames.
    batch_size: Annotated[int, Field(strict=True, ge=2)]
    """Frames per step."""
    learning_rate: Rate
    """Of the first epoch."""
    final_learning_rate: Rate
    """Towards which the rate falls exponentially, epoch by epoch."""
    class_weights: bool
    """Whether anatomy and background are weighted by n / (2 count), as Kolbinger et al. do. The
    paper's "standard" cross-entropy is not."""
    precision: Precision
    """Of training: IEEE float32; float32 with TF32 products on CUDA; autocast to bfloat16, or to
    float16 with a gradient scaler."""
    select_by: SelectBy
    """The validation Dice that chooses the epoch: of each anatomy's own frames, or over all pixels
    that are known."""
    absence_weight: Annotated[Number, Field(ge=0)]
    """Weight of pixels that are background only because the anatomy is known to be absent."""
    seed: Seed
    """Of weights, order and augmentation."""

    @property
    def shared(self) -> bool:
        """Whether one decoder gives the logits of all anatomies."""
        return self.decoders == "shared"


class Teacher(Training):
    """Section ``teacher``: one network per anatomy, and which frames of others it sees."""

    negatives: Annotated[Number, Field(ge=0, lt=1)]
    """Share of an epoch's frames that are other anatomies', drawn anew for each epoch."""


class Cache(Settings):
    """Section ``cache``: the teachers' input, and how their logits are stored."""

    views: Annotated[int, Field(strict=True, ge=0)]
    """0: the logits of the clean frame, which the student's loader warps. K: those of K augmented
    views of each frame."""
    seed: Seed
    """Of the views."""
    batch_size: PositiveInt
    """Frames per forward pass."""
    precision: Precision
    """Of the teachers' forward passes. Logits are stored as float16."""
    shard_frames: PositiveInt
    """Frames per file of a store."""
    keep_bits: Annotated[int, Field(strict=True, ge=1, le=9)] | None
    """Bits of the mantissa that are kept, of float16's ten. `null`: all. Fewer compress better and
    are less exact."""


class Distill(Settings):
    """Section ``distill``: the loss L = L_CE + weight * L_KL, with L_KL at a temperature."""

    temperature: Annotated[Number, Field(ge=0.01)]
    """Of both softmaxes."""
    weight: Annotated[Number, Field(ge=0)]
    """Of the divergence, beside the cross-entropy of the labels."""
    softmax: Literal["pixels", "classes", "classes_balanced"]
    """What the softmax of Equation 2 goes over. `classes_balanced`: over classes, where an anatomy
    and its background weigh the same in every frame."""
    grid: Literal["stores", "student"]
    """Where both are compared: on the stores' grid, or on the student's where that is finer."""
    reconcile: Annotated[bool, Field(strict=True)]
    """Whether teachers are overruled where it is known what a pixel shows, and elsewhere by surer
    teachers."""


class Evaluate(Settings):
    """Section ``evaluate``: how checkpoints are measured on test frames."""

    batch_size: PositiveInt
    """Frames per forward pass."""
    tolerance: Annotated[Number, Field(ge=0)]
    """Of the normalised surface Dice, in pixels of `data.image_size`."""


class Benchmark(Settings):
    """Section ``benchmark``: the frame that the operating room delivers."""

    image_size: tuple[Side, Side]
    """Height and width in pixels."""
    warmup: PositiveInt
    """Calls before the first that counts."""
    repeats: PositiveInt
    """Calls that count. The median is reported."""


class Params(Settings):
    """The whole of params.yaml."""

    data: Data
    teacher: Teacher
    cache: Cache
    distill: Distill
    student: Training
    evaluate: Evaluate
    benchmark: Benchmark
