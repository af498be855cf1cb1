"""Attacks in files: what is read is what was written, or an error that names the file."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lit_adv.attacks as attacks
from lit_adv.attacks import (
    PGD,
    AdversarialPatch,
    Attack,
    Center,
    EnsembleTransfer,
    Radius,
    SubstituteModel,
    UniversalPerturbation,
)
from lit_adv.attacks.transfer import TinyNetwork
from lit_adv.data import load_attack, save_attack

NETWORKS = {"EnsembleTransfer", "GeneratedPerturbation", "SubstituteModel"}
EXAMPLES = {
    cls.__name__: cls.example()
    for cls in vars(attacks).values()
    if isinstance(cls, type)
    and issubclass(cls, Attack)
    and not cls.__abstractmethods__
    and cls.__name__ not in NETWORKS
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Nested(Attack):
    """Everything that a field can hold."""

    eps: float = 0.1
    step_size: float = 0.1
    inner: Attack | None = None
    place: Center | None = None
    pair: tuple = ()
    options: dict | None = None
    grid: torch.Tensor | None = None

    @classmethod
    def example(cls):
        return cls()

    def _craft(self, problem):
        return problem.x


@pytest.mark.parametrize("attack", EXAMPLES.values(), ids=EXAMPLES)
def test_every_attack_comes_back(attack, tmp_path):
    save_attack(attack, tmp_path / "new" / "a.safetensors")
    again = load_attack(str(tmp_path / "new" / "a.safetensors"))
    assert type(again) is type(attack)
    assert again.fingerprint() == attack.fingerprint()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_values_keep_their_types_and_tensors_their_bits(tmp_path):
    grid = torch.randn(4, 3, dtype=torch.float64).to(torch.bfloat16).t()
    inner = UniversalPerturbation(perturbation=grid[None].float(), rates=(0.1, 1 / 3))
    attack = Nested(
        eps=Radius("8/255"),
        step_size=0.1 + 0.2,
        inner=inner,
        place=Center(2),
        pair=(1, (2.0, "a"), [True, None]),
        options={"x": {"y": (1,)}, "tensor": 2},
        grid=grid,
    )
    save_attack(attack, tmp_path / "a.safetensors")
    again = load_attack(tmp_path / "a.safetensors")
    assert again.fingerprint.__self__ is again
    assert (again.eps, again.step_size, again.place, again.pair) == (8 / 255, 0.1 + 0.2, Center(2), attack.pair)
    assert type(again.pair[1][0]) is float
    assert type(again.pair[0]) is int
    assert again.options == attack.options
    assert torch.equal(again.grid, grid)
    assert again.grid.dtype == torch.bfloat16
    assert again.inner.fingerprint() == inner.fingerprint()


def test_a_file_is_tensors_and_json(tmp_path):
    attack = AdversarialPatch(patch=torch.rand(3, 5, 5))
    save_attack(attack, tmp_path / "a.safetensors")
    assert torch.equal(load_file(tmp_path / "a.safetensors")["patch"], attack.patch)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        content = json.loads(file.metadata()["attack"])
    assert content["class"] == "AdversarialPatch"
    assert content["fields"]["rotation"] == 22.5


def test_a_later_write_to_the_tensor_is_not_in_the_file(tmp_path):
    v = torch.full((1, 2, 2), 0.01)
    save_attack(UniversalPerturbation(perturbation=v), tmp_path / "a.safetensors")
    v.zero_()
    assert load_attack(tmp_path / "a.safetensors").perturbation.sum() > 0


@pytest.mark.parametrize(
    "attack",
    [
        SubstituteModel(attack=PGD(), substitute=TinyNetwork()),
        EnsembleTransfer(attack=PGD(), models=[TinyNetwork()]),
    ],
    ids=["substitute", "models.0"],
)
def test_a_network_is_refused(attack, tmp_path, request):
    with pytest.raises(ValueError, match=rf"save_attack: {request.node.callspec.id} must be .* got TinyNetwork"):
        save_attack(attack, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_names_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match=r"load_attack: there is no file '.*a\.safetensors'.*FitAttack"):
        load_attack(path)
    save_attack(UniversalPerturbation.example(), path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", b"\x80\x04K\x01."):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.safetensors' is truncated or not a safetensors file"):
            load_attack(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"a\.safetensors' holds no attack \(it must come from save_attack\)"):
        load_attack(path)
    fields = {"eps": 0.1}
    for content, message in (
        ({"class": "Unknown", "fields": {}}, "there is no attack or region 'Unknown'"),
        ({"class": "Attack", "fields": {}}, "there is no attack or region 'Attack'"),
        ({"class": "PGD", "fields": {"radius": 1}}, "radius"),
        ({"class": "PGD", "fields": {"eps": 8}}, "eps must be in"),
        ({"class": "UniversalPerturbation", "fields": fields | {"perturbation": {"tensor": "b"}}}, "'b'"),
        ({"class": "Center", "fields": {"size": 3}}, "must be an attack, got Center"),
        ([1], "must be an attack, got list"),
    ):
        save_file({"a": torch.ones(2)}, path, metadata={"attack": json.dumps(content)})
        with pytest.raises(ValueError, match=rf"a\.safetensors' holds no attack that can be made: .*{message}"):
            load_attack(path)
    save_file({"a": torch.ones(2)}, path, metadata={"attack": "{"})
    with pytest.raises(ValueError, match=r"a\.safetensors' holds no attack that can be made"):
        load_attack(path)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"save_attack: path must end in \.safetensors, got '.*a\.pt'"):
        save_attack(PGD(), tmp_path / "a.pt")
