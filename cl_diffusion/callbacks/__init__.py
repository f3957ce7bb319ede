"""Callbacks for any Lightning project; adapters over the rooms below."""

from cl_diffusion.callbacks.compiled_network import CompiledNetwork
from cl_diffusion.callbacks.diagnostics.continual_metrics import ContinualMetrics
from cl_diffusion.callbacks.diagnostics.fisher_audit import FisherAudit
from cl_diffusion.callbacks.diagnostics.plasticity_metrics import PlasticityMetrics
from cl_diffusion.callbacks.fused_optimizer import FusedOptimizer
from cl_diffusion.callbacks.plasticity.continual_backprop import ContinualBackprop
from cl_diffusion.callbacks.plasticity.redo import ReDo
from cl_diffusion.callbacks.plasticity.self_normalized_resets import SelfNormalizedResets
from cl_diffusion.callbacks.plasticity.shrink_and_perturb import ShrinkAndPerturb
from cl_diffusion.callbacks.preemption import Preemption
from cl_diffusion.callbacks.regularization.ewc import EWC
from cl_diffusion.callbacks.regularization.l2 import L2SP, L2Init
from cl_diffusion.callbacks.regularization.mas import MAS
from cl_diffusion.callbacks.regularization.regularizer import Regularizer
from cl_diffusion.callbacks.regularization.strength import Constant, Strength, TraceMatched, WarmUp
from cl_diffusion.callbacks.regularization.synaptic_intelligence import SynapticIntelligence
from cl_diffusion.callbacks.regularization.task_samples import OtherTask, OwnSamples, PureNoise, TaskSamples
from cl_diffusion.callbacks.reset_optimizer import ResetOptimizer
from cl_diffusion.callbacks.stream_progress import StreamProgress
from cl_diffusion.callbacks.task import TaskCallback
from cl_diffusion.callbacks.task_checkpoint import TaskCheckpoint

__all__ = [
    "EWC",
    "MAS",
    "CompiledNetwork",
    "Constant",
    "ContinualBackprop",
    "ContinualMetrics",
    "FisherAudit",
    "FusedOptimizer",
    "L2Init",
    "L2SP",
    "OtherTask",
    "OwnSamples",
    "PlasticityMetrics",
    "Preemption",
    "PureNoise",
    "ReDo",
    "Regularizer",
    "ResetOptimizer",
    "SelfNormalizedResets",
    "ShrinkAndPerturb",
    "StreamProgress",
    "Strength",
    "SynapticIntelligence",
    "TaskCallback",
    "TaskCheckpoint",
    "TaskSamples",
    "TraceMatched",
    "WarmUp",
]
