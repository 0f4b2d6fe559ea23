"""Classifiers and segmentation of images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ecosystem.data import blobs, digits, hits, loader
from ecosystem.task import Learner, Program, Rule, Task
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW

adam = partial(Adam, lr=1e-3)


def logits_of(output: Any) -> Tensor:
    """Return the logits of any library's output."""
    output = getattr(output, "logits", output)
    return output[0] if isinstance(output, tuple) else output


def crossed(network: Any, batch: list[Tensor]) -> Tensor:
    return functional.cross_entropy(logits_of(network(batch[0])), batch[1])


def recognized(
    make: Callable[[], nn.Module],
    rule: Rule = adam,
    *,
    side: int = 32,
    channels: int = 3,
    steps: int = 100,
    loss: Callable[[Any, Any], Tensor] = crossed,
    **options: Any,
) -> Task:
    """Recognize digits."""
    data, network = digits(side, channels), make()

    def score() -> float:
        return hits(logits_of(network(data.test_inputs[:256])), data.test_targets[:256])

    return Task(Learner(network, loss, rule), loader(data.inputs, data.targets), score, steps, options)


def of_transformers(kind: str, **config: Any) -> nn.Module:
    import transformers

    settings = transformers.AutoConfig.for_model(kind, num_labels=10, **config)
    return transformers.AutoModelForImageClassification.from_config(settings)


def of_monai(kind: str, *args: Any, **config: Any) -> nn.Module:
    import monai.networks.nets as nets

    network: nn.Module = getattr(nets, kind)(*args, **config)
    return network


def segmented(make: Callable[[], nn.Module], rule: Rule = adam, steps: int = 100, batch: int = 8) -> Task:
    """Find discs with MONAI's Dice loss; the score is Dice's."""
    from monai.losses import DiceLoss

    data, network, dice = blobs(), make(), DiceLoss(sigmoid=True)

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        return dice(network(batch[0]), batch[1])

    def score() -> float:
        found = (network(data.test_inputs) > 0).float()
        return (2 * (found * data.test_targets).sum() / (found + data.test_targets).sum().clamp(min=1)).item()

    return Task(Learner(network, loss, rule), loader(data.inputs, data.targets, batch=batch), score, steps)


def masked_pixels() -> Task:
    """Rebuild the hidden patches of digits, as ViTMAE does."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    wide = {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 64, "decoder_num_attention_heads": 4}
    config = ViTMAEConfig(**{**SMALL_VIT, **wide, "decoder_intermediate_size": 128, "num_channels": 1})
    network, data = ViTMAEForPreTraining(config), digits(32)

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        return network(pixel_values=batch[0]).loss

    def score() -> float:
        return float(network(pixel_values=data.test_inputs).loss)

    rule = partial(AdamW, lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.05)
    return Task(Learner(network, loss, rule), loader(data.inputs, batch=64), score, 150)


def adapted() -> Task:
    """Adapt a ViT that knows half of the digits to all ten, with LoRA and a new head."""
    import peft

    first = recognized(vit, partial(AdamW, lr=1e-3), channels=1, steps=150)
    first.train()
    first.network.classifier = nn.Linear(64, 10)
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj", "query", "value"], modules_to_save=["classifier"])
    return recognized(lambda: peft.get_peft_model(first.network, settings), partial(AdamW, lr=5e-3), channels=1)


def similar() -> Task:
    """Bring digits of one kind together with the triplet loss and the miner of pytorch-metric-learning."""
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner
    from pytorch_metric_learning.reducers import MeanReducer

    data = digits()
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32)
    )
    apart, mine = TripletMarginLoss(margin=0.2), MultiSimilarityMiner(epsilon=0.1)
    over_all = TripletMarginLoss(margin=0.2, reducer=MeanReducer())

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        made = network(batch[0])
        return apart(made, batch[1], mine(made, batch[1]))

    def score() -> float:
        made = network(data.test_inputs)
        return float(over_all(made, data.test_targets))

    return Task(Learner(network, loss, adam), loader(data.inputs, data.targets, batch=64), score, 150)


SMALL_VIT = {
    "image_size": 32, "patch_size": 8, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128,
}  # fmt: skip


def vit() -> nn.Module:
    return of_transformers("vit", **SMALL_VIT, num_channels=1)


def medical_vit() -> nn.Module:
    shape = {"img_size": (32, 32), "patch_size": (8, 8), "spatial_dims": 2, "num_classes": 10, "classification": True}
    return of_monai("ViT", 1, hidden_size=64, mlp_dim=128, num_layers=2, num_heads=4, **shape)


task = partial(Program, "transformers", "the task guide on image classification")
medical = partial(Program, "monai", "the tutorial on spleen segmentation, in two dimensions")
small_resnet = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
unet = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1}

IMAGES: dict[str, Program] = {
    "ViT": task(partial(recognized, vit, partial(AdamW, lr=1e-3), channels=1, steps=150), "accuracy", 0.5),
    "ResNet of transformers": task(
        partial(recognized, partial(of_transformers, "resnet", **small_resnet), partial(SGD, lr=0.1, momentum=0.9)),
        "accuracy", 0.7,
    ),
    "MobileNetV2 of transformers": task(
        partial(recognized, partial(of_transformers, "mobilenet_v2", depth_multiplier=0.35, image_size=32),
                steps=100),
        "accuracy", 0.5,
    ),
    "ConvNeXt": task(
        partial(recognized, partial(of_transformers, "convnext", hidden_sizes=[16, 32], depths=[1, 1], num_stages=2),
                partial(AdamW, lr=4e-3), steps=150),
        "accuracy", 0.5,
    ),
    "Swin": task(
        partial(recognized, partial(of_transformers, "swin", image_size=32, embed_dim=24, depths=[1, 1],
                                    num_heads=[2, 4], window_size=4), partial(AdamW, lr=1e-3), steps=150),
        "accuracy", 0.4,
    ),
    "ViT with LoRA": Program("peft", "the guide on image classification with LoRA", adapted, "accuracy", 0.7),
    "ViTMAE": Program("transformers", "run_mae.py of its examples", masked_pixels, "loss", 0.45),
    "DenseNet of MONAI": Program(
        "monai", "the tutorial mednist_tutorial, with its rate of 1e-5 raised for a short run",
        partial(recognized, partial(of_monai, "DenseNet", 2, 1, 10, init_features=16, growth_rate=8,
                                    block_config=(2, 2)), channels=1),
        "accuracy", 0.7,
    ),
    "ViT of MONAI": Program(
        "monai", "the class's example, on digits",
        partial(recognized, medical_vit, partial(AdamW, lr=1e-3), channels=1, steps=150), "accuracy", 0.7,
    ),
    "UNet of MONAI": medical(
        partial(segmented, partial(of_monai, "UNet", channels=(8, 16, 32), strides=(2, 2), num_res_units=2,
                                   norm="batch", **unet)),
        "Dice", 0.7,
    ),
    "UNETR of MONAI": medical(
        partial(segmented, partial(of_monai, "UNETR", img_size=32, feature_size=8, hidden_size=48, mlp_dim=96,
                                   num_heads=4, **unet), partial(AdamW, lr=1e-3, weight_decay=1e-5), steps=80),
        "Dice", 0.7,
    ),
    "SegResNet of MONAI": medical(
        partial(segmented, partial(of_monai, "SegResNet", init_filters=8, **unet)), "Dice", 0.45,
    ),
    "AttentionUnet of MONAI": medical(
        partial(segmented, partial(of_monai, "AttentionUnet", channels=(8, 16, 32), strides=(2, 2), **unet)),
        "Dice", 0.7,
    ),
    "triplets": Program(
        "pytorch_metric_learning", "the README's triplet loss and miner", similar, "loss", 0.02,
    ),
}  # fmt: skip
