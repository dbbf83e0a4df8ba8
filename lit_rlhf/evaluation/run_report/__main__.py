"""``python -m lit_rlhf.evaluation.run_report RUN_DIR --out report.html``."""

from lit_rlhf.evaluation.run_report import main

raise SystemExit(main())
