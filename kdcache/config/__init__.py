"""The settings of a training, validated before any data are read. Nothing here imports torch.

A setting has three layers, the later ones first: the options of the command line, the config file or preset
(``--config``; without it, the preset of the dataset), and the defaults declared here, which are the paper's where the
paper states a value. A new setting is one field of a config: it makes the option, its help text and its checks.
"""

from kdcache.config.layers import CONFIG_FILE
from kdcache.config.teachers import StudentConfig
from kdcache.config.training import TeacherConfig, TrainingConfig

__all__ = ["CONFIG_FILE", "StudentConfig", "TeacherConfig", "TrainingConfig"]
