"""The guarded bridge to lightning-bolts."""

import subprocess
import sys
import textwrap

import pytest

from lit_adv import bolts


def test_nothing_is_imported_to_look_for_it():
    code = "import sys; from lit_adv.bolts import bolts_available; bolts_available(); print('pl_bolts' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(bolts.bolts_available(), reason="lightning-bolts is installed")
def test_without_it_the_error_says_how_to_get_it():
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps lightning-bolts==0\.7\.0"):
        bolts.import_bolts()


def test_the_shim_is_in_place_and_numpy_is_left_as_it_was(tmp_path):
    # a package that does what the real one does on import
    (tmp_path / "pl_bolts").mkdir()
    (tmp_path / "pl_bolts" / "__init__.py").write_text(
        textwrap.dedent("""
        import warnings
        import numpy
        from pytorch_lightning.utilities.apply_func import apply_to_collection
        assert apply_to_collection([1], int, lambda x: x + 1) == [2]
        numpy.object, numpy.bool, numpy.int, numpy.float = object, bool, int, float
        warnings.warn("under review")
    """)
    )
    code = """
        import sys, warnings
        warnings.simplefilter("error")
        sys.path.insert(0, sys.argv[1])
        import numpy
        before = {name: vars(numpy).get(name) for name in ("object", "bool", "int", "float")}
        from lit_adv.bolts import bolts_available, import_bolts
        assert bolts_available()
        assert import_bolts().__name__ == "pl_bolts"
        assert {name: vars(numpy).get(name) for name in before} == before
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True)


@pytest.mark.skipif(not bolts.bolts_available(), reason="lightning-bolts is not installed")
def test_its_warm_up_is_that_of_torch_schedulers():
    import torch
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

    bolts.import_bolts()
    from pl_bolts.optimizers.lr_scheduler import LinearWarmupCosineAnnealingLR

    def rates(scheduler_of):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
        scheduler, found = scheduler_of(optimizer), []
        for _ in range(10):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return torch.tensor(found)

    ours = rates(
        lambda o: SequentialLR(o, [LinearLR(o, 1e-12, total_iters=2), CosineAnnealingLR(o, T_max=7)], milestones=[3])
    )
    theirs = rates(lambda o: LinearWarmupCosineAnnealingLR(o, warmup_epochs=3, max_epochs=10))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
