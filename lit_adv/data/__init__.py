"""Clean data modules, and the adversarial one that goes on top of any of them."""

from lit_adv.data.adversarial import AdversarialBatch, AdversarialDataModule
from lit_adv.data.adversarial_set import SetCheck, verify_set
from lit_adv.data.arrays import Arrays
from lit_adv.data.attack_files import load_attack, save_attack
from lit_adv.data.cats_vs_dogs import CatsVsDogs
from lit_adv.data.cifar import CIFAR10, CIFAR100
from lit_adv.data.class_subset import ClassSubset
from lit_adv.data.degradation import Degradation
from lit_adv.data.digits import Digits
from lit_adv.data.folder import ImageFolder
from lit_adv.data.image_datamodule import ImageDataModule
from lit_adv.data.imagenet import ImageNet
from lit_adv.data.malaria import Malaria
from lit_adv.data.mnist import MNIST, FashionMNIST
from lit_adv.data.picture_folder import PictureBatch, PictureFile, PictureFolder, read_picture
from lit_adv.data.tiny_imagenet import TinyImageNet

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "AdversarialBatch",
    "AdversarialDataModule",
    "Arrays",
    "CatsVsDogs",
    "ClassSubset",
    "Degradation",
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "ImageNet",
    "Malaria",
    "PictureBatch",
    "PictureFile",
    "PictureFolder",
    "SetCheck",
    "TinyImageNet",
    "load_attack",
    "read_picture",
    "save_attack",
    "verify_set",
]
