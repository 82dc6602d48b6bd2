"""Fakes that ship: scripted models and servers for tests of your own workflows."""
