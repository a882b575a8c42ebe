"""Helpers of the earlier library that existing programs import."""
