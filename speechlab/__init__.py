"""SpeechLab: train, evaluate, compare and explain speech recognition.

Importing the package loads none of torch, ray, mlflow, panel or transformers:
Ray workers and the command line import it too, and must start fast. Import the
module you need: the file list in the README is the order in which data flows.
"""

__version__ = "0.1.0"
