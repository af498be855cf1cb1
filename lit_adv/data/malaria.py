"""Cells with and without malaria parasites."""

from lit_adv.data.datasets import ImageFiles
from lit_adv.data.folder import list_images
from lit_adv.data.image_datamodule import ImageDataModule, require_files
from lit_adv.data.sampling import stratified_order


class Malaria(ImageDataModule):
    """Microscope images of red blood cells, parasitised or not (Rajaraman et al. 2018), from the published folder
    `root/cell_images/{Uninfected,Parasitized}`; 27,558 of them.

    The set has no split of its own: a fifth, the same for every seed, is the test set. It is drawn by image, so that
    cells of one patient are in both. Cells are of any size; they are resized by the shorter side and cut to a square,
    64 px by default.
    """

    native_size = 64
    _FOLDERS = ("Uninfected", "Parasitized")

    @property
    def classes(self) -> list[str]:
        """Uninfected and parasitised, in this order."""
        return ["uninfected", "parasitised"]

    def prepare_data(self) -> None:
        """Checks that the images are there.

        Raises:
            FileNotFoundError: A folder is missing or has no images.
            ValueError: `download` is asked for.
        """
        if self.download:
            raise ValueError("Malaria: download must be false (unpack cell_images.zip of the NIH's set in root)")
        self._source("train")

    def _source(self, split: str) -> ImageFiles | None:
        if split == "val":
            return None
        folder = self.root / "cell_images"
        require_files("Malaria", folder, self._FOLDERS, f"unpack cell_images.zip of the NIH's set in '{self.root}'")
        paths, labels = list_images("Malaria", folder, list(self._FOLDERS))
        if len(labels.unique()) < 2:
            raise FileNotFoundError(f"Malaria: '{folder}' must have images of both classes, got one (unpack it again)")
        everything = ImageFiles(paths, labels, self.image_size)
        order = stratified_order(everything.labels, seed=0)
        test = len(paths) // 5
        return everything.subset(order[:test] if split == "test" else order[test:])
