//! UsageHashes: one hash in Redis for each day, for all replicas.

use std::collections::VecDeque;
use std::mem;
use std::sync::Mutex;

use uuid::Uuid;

use crate::redis::{Access, Redis, RedisUser};
use crate::runtime::{lock, since_epoch, wall_clock};
use crate::split_key::redis_store::all;
use crate::split_key::store::SplitKeyStoreError;
use crate::split_key::usage::days::{Day, Days};
use crate::split_key::usage::report::{UsageEntry, UsageReport};

/// The counts of all replicas, and those of this one that are still to be sent.
pub(super) struct UsageHashes {
    redis: Redis,
    /// Tells the batches of this process from those of others.
    process: String,
    /// Taken by the one that sends.
    unsent: tokio::sync::Mutex<Unsent>,
}

#[derive(Default)]
struct Unsent {
    /// The number of the newest batch.
    newest: u64,
    batches: VecDeque<Batch>,
}

/// Counts of one day that are added together, and once.
struct Batch {
    day: u64,
    number: u64,
    fields: Vec<(String, u64)>,
}

/// The most fields of a batch, for which Redis serves nobody else.
const MAX_FIELDS: usize = 2_000;

/// Adds a batch to a hash, unless it has been added before its answer was lost. Arguments: the field that holds the
/// number of the process' last batch, this batch's number, the time to live in seconds, and fields with their values.
const ADD: &str = r"
local last = redis.call('HGET', KEYS[1], ARGV[1])
if last and tonumber(last) >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
for i = 4, #ARGV, 2 do
  local field, value = ARGV[i], ARGV[i + 1]
  if string.match(field, '^last_used ') or string.match(field, '^version ') then
    local present = redis.call('HGET', KEYS[1], field)
    if not present or tonumber(present) < tonumber(value) then redis.call('HSET', KEYS[1], field, value) end
  else
    redis.call('HINCRBY', KEYS[1], field, value)
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1";

const LOG: RedisUser = RedisUser {
    name: "usage log",
    commands: &["EVAL", "HGET", "HSET", "HINCRBY", "EXPIRE"],
    must_keep: false,
    access: Access::CountUse,
};

const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

impl UsageHashes {
    pub(super) fn new(redis: Redis) -> Self {
        redis.add_user(&LOG);
        Self { redis, process: Uuid::new_v4().simple().to_string(), unsent: Default::default() }
    }

    /// Sends all counts, and waits for their answer. A batch without an answer is sent again with the next call.
    pub(super) async fn write(
        &self,
        days: &Mutex<Days>,
        taken: impl FnOnce(),
    ) -> Result<(), SplitKeyStoreError> {
        let mut unsent = self.unsent.lock().await;
        taken();
        let retention = {
            let mut days = lock(days);
            for (day, fields) in take(&mut days) {
                for fields in fields.chunks(MAX_FIELDS) {
                    unsent.newest += 1;
                    let batch = Batch { day, number: unsent.newest, fields: fields.to_vec() };
                    unsent.batches.push_back(batch);
                }
            }
            days.retention as u64
        };
        while let Some(batch) = unsent.batches.front() {
            let mut command = redis::cmd("EVAL");
            command.arg(ADD).arg(1).arg(self.hash(batch.day)).arg(format!("sent {}", self.process));
            command.arg(batch.number).arg(retention * SECONDS_PER_DAY);
            for (field, value) in &batch.fields {
                command.arg(field).arg(*value);
            }
            let answer: Result<i64, _> = self.redis.query(Access::CountUse, command).await;
            answer.map_err(SplitKeyStoreError::unavailable)?;
            unsent.batches.pop_front();
        }
        Ok(())
    }

    /// Reads the counts of today and of the days before, as many as are kept.
    pub(super) async fn read(&self, retention: usize) -> Result<UsageReport, SplitKeyStoreError> {
        let today = since_epoch(wall_clock()).as_secs() / SECONDS_PER_DAY;
        let mut report = UsageReport::default();
        for day in (0..retention as u64).filter_map(|back| today.checked_sub(back)) {
            let fields =
                all(&self.redis, self.hash(day), |field, value: u64| Some((field.to_owned(), value))).await?;
            let counts = read_day(day, fields).report();
            report.entries.extend(counts.entries.into_iter().rev());
            report.unattributed += counts.unattributed;
            report.dropped += counts.dropped;
        }
        Ok(report)
    }

    fn hash(&self, day: u64) -> String {
        format!("{}:usage2:{day}", self.redis.prefix())
    }
}

/// Takes the counts of the days that have changed, as fields of their hashes. The newest day keeps its entries, without
/// counts: they bound the number of models.
fn take(days: &mut Days) -> Vec<(u64, Vec<(String, u64)>)> {
    let newest = days.days.last_key_value().map(|(day, _)| *day);
    let taken = days.changed().map(|(day, counts)| (day, counts.take())).collect();
    days.days.retain(|day, _| Some(*day) == newest);
    days.gone.clear();
    taken
}

impl Day {
    fn take(&mut self) -> Vec<(String, u64)> {
        let mut fields = Vec::new();
        for (name, count) in [("unattributed", &mut self.unattributed), ("dropped", &mut self.dropped)] {
            fields.push((name.to_owned(), mem::take(count)));
        }
        for entry in self.entries.values_mut() {
            entry.take(&mut fields);
        }
        fields.retain(|(_, count)| *count > 0);
        fields
    }
}

const USES: [&str; 5] = ["opened", "opened_retiring", "refused", "limited", "blocked"];
const ANSWERS: [&str; 4] = ["requests", "unstated", "input_tokens", "output_tokens"];
/// Not added: the larger one stays.
const LARGEST: [&str; 2] = ["last_used", "version"];

impl UsageEntry {
    /// The count of this name.
    fn named(&mut self, name: &str, model: Option<&str>) -> Option<&mut u64> {
        Some(match name {
            "opened" => &mut self.opened,
            "opened_retiring" => &mut self.opened_retiring,
            "refused" => &mut self.refused,
            "limited" => &mut self.limited,
            "blocked" => &mut self.blocked,
            "last_used" => &mut self.last_used,
            "version" => &mut self.version,
            "requests" => &mut self.model_named(model).requests,
            "unstated" => &mut self.model_named(model).unstated,
            "input_tokens" => &mut self.model_named(model).input_tokens,
            "output_tokens" => &mut self.model_named(model).output_tokens,
            _ => return None,
        })
    }

    /// Takes the counts as fields with the name `{count} {split} {model} {project} {provider}`. Only a provider's name
    /// can hold a space.
    fn take(&mut self, fields: &mut Vec<(String, u64)>) {
        let (split, owner) = (self.split, format!("{} {}", self.project, self.provider));
        let field = |name, model: Option<&str>| format!("{name} {split} {} {owner}", model.unwrap_or("-"));
        let models: Vec<_> = self.models.iter().map(|model| model.model.clone()).collect();
        let of_models = models.iter().flat_map(|model| ANSWERS.map(|name| (name, model.as_deref())));
        let before = fields.len();
        for (name, model) in USES.map(|name| (name, None)).into_iter().chain(of_models) {
            match self.named(name, model).map(mem::take) {
                None | Some(0) => {}
                Some(count) => fields.push((field(name, model), count)),
            }
        }
        if fields.len() > before {
            let values =
                LARGEST.map(|name| (field(name, None), self.named(name, None).map_or(0, |value| *value)));
            fields.extend(values);
        }
    }
}

fn read_day(day: u64, fields: Vec<(String, u64)>) -> Day {
    let mut counts = Day::default();
    for (field, value) in fields {
        let count = match &*field {
            "unattributed" => Some(&mut counts.unattributed),
            "dropped" => Some(&mut counts.dropped),
            field => counts.field(day, field),
        };
        // Any other field is the number of a batch, or another version's.
        if let Some(count) = count {
            *count = value;
        }
    }
    counts
}

impl Day {
    /// The count of this field.
    fn field(&mut self, day: u64, field: &str) -> Option<&mut u64> {
        let mut words = field.splitn(5, ' ');
        let (name, split) = (words.next()?, words.next()?.parse().ok()?);
        let model = words.next().filter(|model| *model != "-");
        let (project, provider) = (words.next()?, words.next()?);
        let new = || UsageEntry::new(day, project, split);
        let entry = self.entries.entry((project.to_owned(), split)).or_insert_with(new);
        provider.clone_into(&mut entry.provider);
        entry.named(name, model)
    }
}
