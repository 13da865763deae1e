"""Before anything is trained: where a model's time and bytes go here, and what each technique can give at most."""

from hf_efficient.profiling.profile import PROFILE, Profile, profile

__all__ = ["PROFILE", "Profile", "profile"]
