-- DuckDB views over a run's trajectory log. Start DuckDB in the run's folder, then `.read .../scripts/views.sql`.
-- A resumed run moves what it no longer vouches for out of these folders, so a plain glob is always right.

CREATE OR REPLACE VIEW episodes AS SELECT * FROM read_parquet('trajectories/v1/episodes/*/*.parquet', union_by_name = true);
CREATE OR REPLACE VIEW agents AS SELECT * FROM read_parquet('trajectories/v1/agents/*/*.parquet', union_by_name = true);
CREATE OR REPLACE VIEW steps AS SELECT * FROM read_parquet('trajectories/v1/steps/*/*.parquet', union_by_name = true);
CREATE OR REPLACE VIEW tokens AS SELECT * FROM read_parquet('trajectories/v1/tokens/*/*.parquet', union_by_name = true);
CREATE OR REPLACE VIEW rewards AS SELECT * FROM read_parquet('trajectories/v1/rewards/*/*.parquet', union_by_name = true);

-- Reward = Σ of the components' values, in every reward form.
CREATE OR REPLACE VIEW episode_reward AS
SELECT train_step, episode_id, sum(value) AS reward
FROM rewards
GROUP BY train_step, episode_id;

-- One row a stage: the orchestrator's own cost, and the longest sub-agent that the stage started.
CREATE OR REPLACE VIEW episode_stages AS
WITH main AS (
  SELECT train_step, episode_id, stage, sum(s_main) AS s_main
  FROM steps WHERE agent_idx = 0
  GROUP BY ALL
), sub AS (
  SELECT train_step, episode_id, stage, max(n_steps) AS s_sub, sum(n_steps) AS s_sub_total, count(*) AS n_agents
  FROM agents WHERE agent_idx > 0
  GROUP BY ALL
)
SELECT train_step, episode_id, stage, s_main,
       coalesce(s_sub, 0) AS s_sub, coalesce(s_sub_total, 0) AS s_sub_total, coalesce(n_agents, 0) AS n_agents
FROM main LEFT JOIN sub USING (train_step, episode_id, stage);

-- CriticalSteps = Σ_t (S_main(t) + max_i S_sub,i(t)).
CREATE OR REPLACE VIEW episode_steps AS
SELECT train_step, episode_id,
       sum(s_main + s_sub)::INTEGER AS critical_steps,
       sum(s_main + s_sub_total)::INTEGER AS total_steps,
       count(*)::INTEGER AS n_stages
FROM episode_stages
GROUP BY train_step, episode_id;

-- Must be empty: what the episodes table says against what the rows say.
CREATE OR REPLACE VIEW check_failures AS
SELECT e.train_step, e.episode_id, 'reward' AS what, e.reward AS logged, r.reward AS recomputed
FROM episodes e LEFT JOIN episode_reward r USING (train_step, episode_id)
WHERE e.reward IS NOT NULL AND (r.reward IS NULL OR abs(e.reward - r.reward) > 1e-12)
UNION ALL
SELECT e.train_step, e.episode_id, 'critical_steps', e.critical_steps, s.critical_steps
FROM episodes e LEFT JOIN episode_steps s USING (train_step, episode_id)
WHERE e.critical_steps IS DISTINCT FROM s.critical_steps
UNION ALL
SELECT e.train_step, e.episode_id, 'total_steps', e.total_steps, s.total_steps
FROM episodes e LEFT JOIN episode_steps s USING (train_step, episode_id)
WHERE e.total_steps IS DISTINCT FROM s.total_steps;
