"""Create process_states, process_logs and the view task_states.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIMESTAMP = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_LINES = sa.JSON().with_variant(postgresql.ARRAY(sa.Text), "postgresql")

_COLUMNS = """process_id, task_id, user_id, job_uid, job_namespace, job_name, attempt, status, start_time,
    end_time, progress, logs, error, error_category, pod_name, node_name, session_id, model, num_turns,
    cost_usd, input_tokens, output_tokens, metadata, created_at, updated_at"""

# Both windows are partitioned by task_id first, so that PostgreSQL applies a reader's WHERE task_id = ...
# before it computes them.
_VIEW = f"""
CREATE VIEW task_states AS
SELECT {_COLUMNS} FROM (
    SELECT s.*, row_number() OVER (
        PARTITION BY task_id ORDER BY job_started DESC, job_uid DESC, attempt DESC
    ) AS newest
    FROM (
        SELECT p.*, min(coalesce(start_time, created_at)) OVER (PARTITION BY task_id, job_uid) AS job_started
        FROM process_states AS p WHERE task_id IS NOT NULL
    ) AS s
) AS ranked
WHERE newest = 1
"""  # noqa: S608 - constants


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "process_states",
        sa.Column("process_id", sa.Text, primary_key=True),
        sa.Column("task_id", sa.Text),
        sa.Column("user_id", sa.Text),
        sa.Column("job_uid", sa.Text, nullable=False),
        sa.Column("job_namespace", sa.Text, nullable=False),
        sa.Column("job_name", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("start_time", _TIMESTAMP),
        sa.Column("end_time", _TIMESTAMP),
        sa.Column("progress", sa.Integer, nullable=False),
        sa.Column("logs", _LINES, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("error_category", sa.Text),
        sa.Column("pod_name", sa.Text),
        sa.Column("node_name", sa.Text),
        sa.Column("session_id", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("num_turns", sa.Integer),
        sa.Column("cost_usd", sa.Double),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("metadata", _JSON, nullable=False),
        sa.Column("created_at", _TIMESTAMP, nullable=False),
        sa.Column("updated_at", _TIMESTAMP, nullable=False),
        sa.CheckConstraint(
            "status IN ('starting', 'running', 'completed', 'failed', 'cancelled')",
            name="process_states_status_check",
        ),
        sa.CheckConstraint("progress BETWEEN 0 AND 100", name="process_states_progress_check"),
    )
    op.create_index("process_states_task_id_idx", "process_states", ["task_id"])
    op.create_index("process_states_user_id_updated_at_idx", "process_states", ["user_id", "updated_at"])
    op.create_index("process_states_status_updated_at_idx", "process_states", ["status", "updated_at"])
    op.create_index("process_states_updated_at_idx", "process_states", ["updated_at"])
    op.create_table(
        "process_logs",
        sa.Column("process_id", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time", _TIMESTAMP, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("line", sa.Text, nullable=False),
    )
    op.execute(_VIEW)


def downgrade() -> None:
    """Drop everything, data included."""
    op.execute("DROP VIEW task_states")
    op.drop_table("process_logs")
    op.drop_table("process_states")
