"""The readers of PEFT's types of adapters other than LoRA, by their names in the configuration."""

from lowrank_core.models.formats.peft_adalora import read_adalora
from lowrank_core.models.formats.peft_ia3 import read_ia3
from lowrank_core.models.formats.peft_loha import read_loha
from lowrank_core.models.formats.peft_lokr import read_lokr
from lowrank_core.models.formats.peft_vera import read_vera

OTHER_TYPES = {
    "ADALORA": read_adalora,
    "IA3": read_ia3,
    "LOHA": read_loha,
    "LOKR": read_lokr,
    "VERA": read_vera,
}
