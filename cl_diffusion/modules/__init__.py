"""LightningModules."""

from cl_diffusion.modules.ddpm import DDPM
from cl_diffusion.modules.diffusers_pipeline import export_pipeline, import_pipeline
from cl_diffusion.modules.distillation import DistillationMixin
from cl_diffusion.modules.distilled_ddpm import DistilledDDPM
from cl_diffusion.modules.fresh_averages import FreshAverages
from cl_diffusion.modules.network_folder import pretrained_network
from cl_diffusion.modules.online_classifier import OnlineClassifier
from cl_diffusion.modules.variance_head_module import VarianceHeadModule

__all__ = [
    "DDPM",
    "DistillationMixin",
    "DistilledDDPM",
    "FreshAverages",
    "OnlineClassifier",
    "VarianceHeadModule",
    "export_pipeline",
    "import_pipeline",
    "pretrained_network",
]
