"""Networks of timm, torchvision and transformers, with random weights: is their head found?

``python tests/support/head_zoo.py`` prints a table; :mod:`test_head_zoo` asserts it. Small members
of each family, small images: what is tried is the way from the head to what the model returns.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from head_kinds import returned_of
from ncmonitor import FeatureTap, InputError

CLASSES = 7


class Entry(NamedTuple):
    """A network, what runs it, and the name of its head; ``None``: it must be refused."""

    family: str
    make: Callable[[], nn.Module]
    run: Callable[[nn.Module], Any]
    head: str | None


def image(size: int = 64) -> Callable[[nn.Module], Any]:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return lambda model: model(x)


def tokens(**more: Any) -> Callable[[nn.Module], Any]:
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 9, 4, 0, 0]])  # the second is padded
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return lambda model: model(input_ids=ids, attention_mask=mask, **more)


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=CLASSES, **options)

    return make


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None, num_classes=CLASSES, **options)

    return make


def hf(config: str, model: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**options)
        return getattr(transformers, model)(made)

    return make


class Scaled(nn.Module):
    """CLIP's logits: a learnt scale on top of a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.GELU()),
            nn.Linear(16, CLASSES),
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def forward(self, x: Tensor) -> Tensor:
        return self.logit_scale.exp() * self.head(self.body(x))


_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_SMALL |= {"intermediate_size": 16, "num_labels": CLASSES}
_BERT = _SMALL | {"vocab_size": 32}
_LLAMA = _BERT | {"num_key_value_heads": 2, "pad_token_id": 0}
_VIT = _SMALL | {"image_size": 16, "patch_size": 8}
_GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
_GPT2 |= {"num_labels": CLASSES}

ZOO: dict[str, Entry] = {
    # -- timm
    **{
        f"timm {name}": Entry(family, timm(name, **options), image(size), head)
        for name, family, head, size, options in (
            ("resnet10t", "resnet", "fc", 64, {}),
            ("regnetx_002", "regnet", "head.fc", 64, {}),
            ("efficientnet_lite0", "efficientnet", "classifier", 64, {}),
            ("mobilenetv3_small_050", "mobilenet", "classifier", 64, {}),
            ("mobilevit_xxs", "mobilevit", "head.fc", 64, {}),
            ("vit_tiny_patch16_224", "vit", "head", 32, {"img_size": 32}),
            ("deit_tiny_patch16_224", "deit", "head", 32, {"img_size": 32}),
            ("swin_tiny_patch4_window7_224", "swin", "head.fc", 56, {"img_size": 56}),
            ("convnext_atto", "convnext", "head.fc", 64, {}),
            ("mixer_s32_224", "mixer", "head", 64, {"img_size": 64}),
            ("resmlp_12_224", "resmlp", "head", 32, {"img_size": 32}),
            ("pit_ti_224", "pit", "head", 64, {"img_size": 64}),
            ("pvt_v2_b0", "pvt", "head", 64, {}),
            ("poolformer_s12", "metaformer", "head.fc", 64, {}),
            ("ghostnet_050", "ghostnet", "classifier", 64, {}),
            ("repvgg_a0", "repvgg", "head.fc", 64, {}),
            ("dla34", "dla", "fc", 64, {}),
            ("cait_xxs24_224", "cait", "head", 32, {"img_size": 32, "depth": 2}),
            ("coat_lite_tiny", "coat", "head", 64, {"img_size": 64}),
            ("edgenext_xx_small", "edgenext", "head.fc", 64, {}),
            ("efficientformer_l1", "efficientformer", None, 224, {}),
            ("beit_base_patch16_224", "beit", "head", 32, {"img_size": 32, "depth": 1}),
            ("xcit_nano_12_p16_224", "xcit", "head", 64, {"img_size": 64, "depth": 2}),
            ("rexnet_100", "rexnet", "head.fc", 64, {}),
            ("hgnetv2_b0", "hgnet", "head.fc", 64, {}),
            ("focalnet_tiny_srf", "focalnet", "head.fc", 64, {}),
            ("fastvit_t8", "fastvit", "head.fc", 64, {}),
            ("starnet_s1", "starnet", "head", 64, {}),
            ("hardcorenas_a", "nas", "classifier", 64, {}),
            ("res2net50_26w_4s", "res2net", "fc", 64, {}),
            ("ese_vovnet19b_slim", "vovnet", "head.fc", 64, {}),
            ("levit_128s", "levit", None, 224, {}),
            ("deit_tiny_distilled_patch16_224", "deit", None, 32, {"img_size": 32}),
        )
    },
    # -- torchvision
    **{
        f"torchvision {name}": Entry(family, torchvision(name, **options), image(size), head)
        for name, family, head, size, options in (
            ("resnet18", "resnet", "fc", 32, {}),
            ("alexnet", "alexnet", "classifier.6", 64, {}),
            ("vgg11", "vgg", "classifier.6", 32, {"init_weights": False}),
            ("densenet121", "densenet", "classifier", 32, {}),
            ("mobilenet_v2", "mobilenet", "classifier.1", 32, {}),
            ("shufflenet_v2_x0_5", "shufflenet", "fc", 32, {}),
            ("mnasnet0_5", "mnasnet", "classifier.1", 32, {}),
            ("googlenet", "inception", "fc", 64, {"init_weights": False}),
            ("squeezenet1_1", "squeezenet", None, 64, {}),
            ("lraspp_mobilenet_v3_large", "segmentation", None, 64, {"weights_backbone": None}),
            ("fcn_resnet50", "segmentation", None, 64, {"weights_backbone": None}),
        )
    },
    # -- transformers
    **{
        f"transformers {config}{task}": Entry(
            config.lower(), hf(f"{config}Config", f"{config}{task}", **options), run, head
        )
        for config, task, head, run, options in (
            ("Bert", "ForSequenceClassification", "classifier", tokens(), _BERT),
            ("Roberta", "ForSequenceClassification", "classifier.out_proj", tokens(), _BERT),
            ("Electra", "ForSequenceClassification", "classifier.out_proj", tokens(), _BERT),
            ("Bert", "ForTokenClassification", "classifier", tokens(), _BERT),
            ("Bert", "ForMaskedLM", "cls.predictions.decoder", tokens(), _BERT),  # tied
            ("GPT2", "ForSequenceClassification", "score", tokens(), _GPT2),  # the last token
            ("GPT2", "LMHeadModel", "lm_head", tokens(), _GPT2),  # tied
            ("Llama", "ForSequenceClassification", "score", tokens(), _LLAMA),  # the last token
            ("Qwen2", "ForTokenClassification", "score", tokens(), _LLAMA),
            ("Gemma2", "ForCausalLM", "lm_head", tokens(), _LLAMA | {"head_dim": 8}),  # softcap
            ("ViT", "ForImageClassification", "classifier", image(16), _VIT),
            ("Dinov2", "ForImageClassification", "classifier", image(16), _VIT),
            ("Segformer", "ForImageClassification", "classifier", image(), {"num_labels": CLASSES}),
        )
    },
    # -- by hand
    "learnt logit scale": Entry("clip", Scaled, image(8), "head"),
}


def found(entry: Entry) -> FeatureTap | InputError:
    """Return the tap of a network after a batch, whose values it has compared; or its refusal."""
    torch.manual_seed(0)
    model = entry.make().eval()
    with torch.no_grad(), FeatureTap(model) as tap:
        returned = entry.run(model)
        try:
            activations = tap.take()
        except InputError as error:
            return error
        logits = (
            returned
            if isinstance(returned, Tensor)
            else returned["logits"]
            if "logits" in returned
            else returned[0]
        )
        weight, bias = tap.weight.double(), tap.bias
        linear = activations.features.double() @ weight.T + (0 if bias is None else bias.double())
        assert tap.head is not None
        assert tap.head.link is not None
        shown = returned_of(tap.head.link, linear.reshape(-1, linear.shape[-1]))
        torch.testing.assert_close(
            shown.view(linear.shape), logits.double().view(linear.shape), rtol=1e-3, atol=1e-4
        )
    return tap


def main() -> Iterator[str]:
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    sound = 0
    for name, entry in ZOO.items():
        started = time.perf_counter()
        try:
            tap = found(entry)
        except Exception as error:
            yield f"{name:45} FAILED {type(error).__name__}: {str(error)[:200]}"
            continue
        seconds = time.perf_counter() - started
        if isinstance(tap, InputError):
            mark = "refused" if entry.head is None else "WRONGLY REFUSED"
            yield f"{name:45} {mark}: {str(tap)[:150]}  {seconds:.1f} s"
        else:
            sound += 1
            mark = "" if tap.name == entry.head else f"  WRONG, expected {entry.head}"
            assert tap.head is not None
            assert tap.head.link is not None
            chosen = " of a position" if tap.head.link.arrangement.chosen else ""
            yield f"{name:45} {tap.name}: {tap.head.link.kind}{chosen}{mark}  {seconds:.1f} s"
    families = {entry.family for entry in ZOO.values()}
    yield f"{sound} found of {len(ZOO)} networks of {len(families)} families"


if __name__ == "__main__":
    for line in main():
        print(line, flush=True)
