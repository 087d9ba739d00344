"""List the package `lacuna` (the root itself) and every folder below its rooms, so that a new folder needs no edit."""

from setuptools import find_namespace_packages, setup

ROOMS = ("analysis", "harness", "jobs", "kernels", "models", "results")
setup(packages=["lacuna", *(f"lacuna.{p}" for p in find_namespace_packages() if p.split(".")[0] in ROOMS)])
