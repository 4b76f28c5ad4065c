"""What is trained, in files that other runtimes read."""

import os

# LiteRT's converter loads libraries of TensorFlow, which say on some processors
# how they would compute. They compute nothing here.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
