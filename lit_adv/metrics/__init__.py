"""Numbers over a data set, as torchmetrics: counts and sums, so that any number of processes agrees."""

from lit_adv.metrics.attribution import BudgetError, VictimAccuracy
from lit_adv.metrics.calibration import AnsweredAccuracy, Calibration, LogitCalibration, calibrated, fit_temperature
from lit_adv.metrics.fooling import FoolingRate
from lit_adv.metrics.hierarchy import HierarchicalRecognition
from lit_adv.metrics.localization import LocalizationScores, localization_scores
from lit_adv.metrics.masking import MaskingCounts
from lit_adv.metrics.neutralization import NeutralizationScore, wilson_interval
from lit_adv.metrics.noise_accuracy import NoiseAccuracy
from lit_adv.metrics.paired import PairedDifference, median_interval, paired_difference
from lit_adv.metrics.recognition import RecognitionAccuracy
from lit_adv.metrics.reconstruction import ReconstructionAccuracy
from lit_adv.metrics.robustness import RobustAccuracy
from lit_adv.metrics.saliency import SaliencyProfileMean, SaliencyStatistics
from lit_adv.metrics.signal_to_noise import MeanPSNR, psnr
from lit_adv.metrics.structural_similarity import MeanSSIM, ssim, ssim_map
from lit_adv.metrics.transfer_matrix import TransferMatrix

__all__ = [
    "BudgetError",
    "AnsweredAccuracy",
    "Calibration",
    "FoolingRate",
    "HierarchicalRecognition",
    "LocalizationScores",
    "LogitCalibration",
    "MaskingCounts",
    "MeanPSNR",
    "MeanSSIM",
    "NeutralizationScore",
    "NoiseAccuracy",
    "PairedDifference",
    "RecognitionAccuracy",
    "ReconstructionAccuracy",
    "RobustAccuracy",
    "SaliencyProfileMean",
    "SaliencyStatistics",
    "TransferMatrix",
    "VictimAccuracy",
    "calibrated",
    "fit_temperature",
    "localization_scores",
    "median_interval",
    "paired_difference",
    "psnr",
    "ssim",
    "ssim_map",
    "wilson_interval",
]
