"""Pictures, charts and pages."""

import logging

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where HOME cannot be written, it says so at each start
