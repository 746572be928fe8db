//! The code, `template.yaml` and the guides agree: each family has its function, queue, resource, rule file
//! and samples, and tables, time-outs and retries are the same in both.

use std::path::{Path, PathBuf};
use std::time::Duration;

use local::stack::functions::{self, Trigger};
use tallyhook_aws::env::Env;
use tallyhook_aws::store::schema::LISTED;
use tallyhook_core::event::{EventType, Family};
use tallyhook_service::config::queue_variable;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// `invoice-paid` → `InvoicePaid`.
fn logical(family: Family) -> String {
    camel(family.as_str())
}

pub fn camel(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('-').map(capital).collect()
}

/// What all functions of the template have.
fn globals(template: &str) -> &str {
    let start = template.find("\nGlobals:\n").expect("template.yaml has Globals");
    let end = template.find("\nResources:\n").expect("template.yaml has Resources");
    &template[start..end]
}

/// The text of one resource of the template.
pub fn resource(template: &str, name: &str) -> String {
    let start =
        template.find(&format!("\n  {name}:\n")).unwrap_or_else(|| panic!("template.yaml has no {name}"));
    let rest = &template[start + 1..];
    let end = rest
        .match_indices("\n  ")
        .find(|(place, _)| !rest[place + 3..].starts_with([' ', '#']) && *place > 0)
        .map_or(rest.len(), |(place, _)| place);
    rest[..end].to_owned()
}

fn samples() -> Vec<String> {
    let entries = std::fs::read_dir(root().join("events")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect()
}

#[test]
fn every_family_has_its_function_queue_resource_rule_file_and_wrapped_sample() {
    let template = read("template.yaml");
    for family in Family::ALL {
        let name = family.as_str();
        let main = read(&format!("functions/{name}/src/main.rs"));
        assert!(
            main.contains(&format!("Family::{}", logical(family))),
            "functions/{name} works for another family"
        );
        read(&format!("common/core/src/decide/{}.rs", name.replace('-', "_")));
        read(&format!("events/lambda/{name}.json"));
        let function = resource(&template, &format!("{}Function", logical(family)));
        assert!(function.contains(&format!("Binary: {name}\n")), "{name}");
        assert!(function.contains("ReportBatchItemFailures"), "{name} would lose or repeat whole batches");
        assert!(function.contains("BatchSize: 10"), "{name}");
        let queue = resource(&template, &format!("{}Queue", logical(family)));
        assert!(queue.contains(&format!("-{name}")), "{name}");
        assert!(
            globals(&template).contains(&format!(
                "{}: !Ref {}Queue\n",
                queue_variable(family),
                logical(family)
            )),
            "{name}"
        );
    }
}

#[test]
fn every_function_is_in_the_template_and_the_local_stack_with_the_same_trigger() {
    let template = read("template.yaml");
    let parts = functions::all();
    let mut folders: Vec<String> = std::fs::read_dir(root().join("functions"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| root().join("functions").join(name).join("Cargo.toml").is_file())
        .collect();
    folders.sort();
    let mut names: Vec<&str> = parts.iter().map(|part| part.name).collect();
    names.sort_unstable();
    assert_eq!(folders, names, "functions/ and local/src/stack/functions.rs");
    for part in parts {
        let function = resource(&template, &format!("{}Function", camel(part.name)));
        assert!(function.contains(&format!("Binary: {}\n", part.name)), "{}", part.name);
        assert!(
            function.contains(&format!("CodeUri: functions/{}\n", part.name)),
            "{}: at the root it would be built otherwise",
            part.name
        );
        assert!(function.contains(&format!("Role: !GetAtt {}Role.Arn", camel(part.name))), "{}", part.name);
        let trigger = match part.trigger {
            Trigger::Http => "Type: HttpApi".to_owned(),
            Trigger::Queue => format!("Queue: !GetAtt {}Queue.Arn", camel(part.name)),
            Trigger::Every(period) if period.as_secs() == 3_600 => "Schedule: rate(1 hour)".to_owned(),
            Trigger::Every(period) if period.as_secs() % 3_600 == 0 => {
                format!("Schedule: rate({} hours)", period.as_secs() / 3_600)
            }
            Trigger::Every(period) => format!("Schedule: rate({} minutes)", period.as_secs() / 60),
        };
        assert!(function.contains(&trigger), "{}: {trigger}", part.name);
        if let Trigger::Every(_) = part.trigger {
            let timeout = format!("Timeout: {} ", part.timeout.as_secs());
            assert!(
                function.contains(&timeout)
                    || globals(&template).contains(&timeout) && !function.contains("Timeout: "),
                "{}",
                part.name
            );
        }
        if part.trigger == Trigger::Queue {
            assert!(
                function.contains("ReportBatchItemFailures"),
                "{} would lose or repeat whole batches",
                part.name
            );
            let queue = resource(&template, &format!("{}Queue", camel(part.name)));
            assert!(
                queue.contains(&format!("VisibilityTimeout: {}", 6 * part.timeout.as_secs())),
                "{}",
                part.name
            );
        }
    }
}

#[test]
fn a_function_starts_with_the_variables_of_the_template() {
    let template = read("template.yaml");
    let variables = |text: &str| -> Vec<String> {
        let block = text.split("Variables:\n").nth(1).unwrap_or_default();
        let lines = block.lines().take_while(|line| {
            line.contains(": ") && line.trim_start().starts_with(|c: char| c.is_ascii_uppercase())
        });
        lines
            .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
            .filter(|name| name.to_uppercase() == *name)
            .collect()
    };
    for part in functions::all() {
        let mut env = Env::from([
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "key"),
        ]);
        let function = resource(&template, &format!("{}Function", camel(part.name)));
        for name in variables(globals(&template)).into_iter().chain(variables(&function)) {
            let value = match name.as_str() {
                "STRIPE_LIVEMODE" | "KEEP_PAYLOADS" => "false",
                "ADMIN_API_TOKENS" => {
                    r#"[{"name":"ann","role":"viewer",
                    "sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}]"#
                }
                "PROVISION_SECRET" => "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
                "PROVISION_EVENTS" => "payment.confirmed,order.paid",
                "RETRY_DELAYS_SECONDS" | "WEBHOOK_TOLERANCE_SECONDS" => "300",
                _ => "https://example.com/text",
            };
            env.set(name, value);
        }
        part.handler(&env).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

#[test]
fn no_role_has_a_wildcard_but_for_the_one_action_without_resources() {
    let template = read("template.yaml");
    let policies: Vec<String> = template
        .split("\n  ")
        .filter_map(|line| line.split_once(":\n").map(|(name, _)| name).or_else(|| line.strip_suffix(':')))
        .filter(|name| {
            name.ends_with("Role")
                || (name.ends_with("Policy")
                    && !name.ends_with("QueuePolicy")
                    && !name.ends_with("TopicPolicy"))
        })
        .filter(|name| name.chars().all(char::is_alphanumeric))
        .map(|name| resource(&template, name))
        .collect();
    assert!(policies.len() > 15, "{}", policies.len());
    for policy in policies {
        let policy: String = policy.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
        let ages = "Action: [cloudwatch:GetMetricData]                Resource: \"*\"";
        assert!(!policy.replace(ages, "").contains('*'), "{policy}");
        assert!(
            policy.contains("Service: lambda.amazonaws.com") || policy.contains("AWS::IAM::ManagedPolicy"),
            "{policy}"
        );
    }
}

#[test]
fn the_apps_webhook_has_its_function_queue_and_retries() {
    let template = read("template.yaml");
    let queue = resource(&template, "ProvisionQueue");
    for part in ["-provision", "VisibilityTimeout: 180", "maxReceiveCount: 4"] {
        assert!(queue.contains(part), "{part}");
    }
    let function = resource(&template, "ProvisionFunction");
    assert!(function.contains("Binary: provision\n") && function.contains("ReportBatchItemFailures"));
    assert!(read("functions/provision/src/main.rs").contains("Provision::from_env"));
    assert!(resource(&template, "SendPolicy").contains("!GetAtt ProvisionQueue.Arn"));
    for family in Family::ALL {
        let role = resource(&template, &format!("{}Role", logical(family)));
        assert!(role.contains("!Ref SendPolicy"), "{family} may not queue a job that its transaction wrote");
    }
}

#[test]
fn every_routed_event_type_has_a_sample_of_its_type() {
    let samples = samples();
    for kind in EventType::KNOWN {
        let of_kind: Vec<_> = samples.iter().filter(|name| name.starts_with(&format!("{kind}."))).collect();
        assert!(!of_kind.is_empty(), "events/{kind}.json is missing");
    }
    for name in &samples {
        let event = tallyhook_core::event::read(read(&format!("events/{name}")).as_bytes())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(name.starts_with(&format!("{}.", event.kind)), "{name} holds a {}", event.kind);
    }
}

#[test]
fn visibility_is_six_timeouts_and_each_delay_has_an_attempt() {
    let template = read("template.yaml");
    assert!(template.contains("    Timeout: 30 "), "the functions' time-out");
    let delays = template
        .split("RETRY_DELAYS_SECONDS: \"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap()
        .split(',')
        .count();
    for family in Family::ALL {
        let queue = resource(&template, &format!("{}Queue", logical(family)));
        assert!(queue.contains("VisibilityTimeout: 180"), "{family}");
        assert!(queue.contains(&format!("maxReceiveCount: {}", delays + 1)), "{family}");
        assert!(queue.contains("MaximumMessageSize: 1048576"), "{family}");
    }
    assert!(resource(&template, "DeadLetterQueue").contains("MessageRetentionPeriod: 1209600"), "14 days");
}

#[test]
fn the_templates_tables_are_the_ones_that_the_tests_run_on() {
    let template = read("template.yaml");
    let events = resource(&template, "EventsTable");
    let listed = format!("NonKeyAttributes: [{}]", LISTED.join(", "));
    assert_eq!(events.matches(&listed).count(), 2, "{listed}");
    for index in ["by_day", "by_status"] {
        assert!(events.contains(&format!("IndexName: {index}")));
    }
    let accounts = resource(&template, "AccountsTable");
    for index in ["by_due", "by_shard"] {
        assert!(accounts.contains(&format!("IndexName: {index}")));
    }
    assert!(!accounts.contains("TimeToLive"), "nothing in the accounts table expires");
    for table in [accounts, events] {
        assert!(
            table.contains("PointInTimeRecoveryEnabled: true")
                && table.contains("DeletionProtectionEnabled: true")
        );
    }
}

#[test]
fn the_guide_names_every_event_type() {
    let guide = read("docs/deploy.md");
    let list = guide.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let named: Vec<&str> = list.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let known: Vec<&str> = EventType::KNOWN.iter().map(EventType::as_str).collect();
    assert_eq!(named, known, "the event types in the guide and those in the code");
}

#[test]
fn every_alarm_is_in_the_guide_and_every_function_and_queue_has_one() {
    let template = read("template.yaml");
    let mut alarms: Vec<&str> =
        template.split("AlarmName: !Sub ${Prefix}-").skip(1).filter_map(|rest| rest.lines().next()).collect();
    let guide = read("docs/operating.md");
    let table = guide.split("\n| alarm |").nth(1).unwrap().split("\n\n").next().unwrap();
    let rows = table.lines().skip(2).filter_map(|row| row.split('|').nth(1));
    let mut explained: Vec<&str> = rows.flat_map(|names| names.split('`').skip(1).step_by(2)).collect();
    alarms.sort_unstable();
    explained.sort_unstable();
    assert!(alarms.len() > 5, "{alarms:?}");
    assert_eq!(alarms, explained, "template.yaml and docs/operating.md");

    let of_errors = ["WorkerErrorsAlarm", "FunctionErrorsAlarm", "ReconcileErrorsAlarm"]
        .map(|name| resource(&template, name))
        .concat();
    let of_age = resource(&template, "OldestMessageAlarm");
    for part in functions::all() {
        assert_eq!(
            of_errors.matches(&format!("Value: !Ref {}Function }}", camel(part.name))).count(),
            1,
            "{}",
            part.name
        );
        // The dead-letter queue has its own alarm, and alerts may wait for Slack.
        if part.trigger == Trigger::Queue && !matches!(part.name, "dead-letter" | "notify") {
            assert_eq!(
                of_age.matches(&format!("Value: !GetAtt {}Queue.QueueName", camel(part.name))).count(),
                1,
                "{}",
                part.name
            );
        }
    }
}

#[test]
fn every_function_and_queue_is_on_the_dashboard() {
    let template = read("template.yaml");
    let dashboard = resource(&template, "Dashboard");
    for part in functions::all() {
        for metric in ["Errors", "Throttles"] {
            let curve =
                format!("[\"AWS/Lambda\", \"{metric}\", \"FunctionName\", \"${{Prefix}}-{}\"", part.name);
            assert_eq!(dashboard.matches(&curve).count(), 1, "{}", part.name);
        }
        if part.trigger == Trigger::Queue {
            assert!(
                dashboard.contains(&format!("\"QueueName\", \"${{Prefix}}-{}\"", part.name)),
                "{}",
                part.name
            );
        }
    }
    let body = dashboard.split("DashboardBody: !Sub |\n").nth(1).unwrap().split("\n\n").next().unwrap();
    serde_json::from_str::<serde_json::Value>(body).unwrap();
}

#[test]
fn every_function_is_shipped_without_its_symbols() {
    let manifest = read("Cargo.toml");
    let stripped = |table: &str| {
        let own = manifest.split(&format!("\n[{table}]\n")).nth(1)?.split("\n[").next()?;
        Some(own.lines().any(|line| line == "strip = true"))
    };
    assert_eq!(stripped("profile.release"), Some(true));
    for part in functions::all() {
        // A package with a table of its own does not inherit the setting.
        assert_ne!(stripped(&format!("profile.release.package.{}", part.name)), Some(false), "{}", part.name);
    }
}

#[test]
fn releases_contain_no_debug_or_trace_logging() {
    let manifest = read("Cargo.toml");
    let tracing = manifest.lines().find(|line| line.starts_with("tracing = ")).unwrap();
    assert!(tracing.contains("\"release_max_level_info\""), "it holds requests and their bodies: {tracing}");
}

#[test]
fn a_call_without_an_answer_ends_before_its_function() {
    let env = Env::from([
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
    ]);
    let config = tallyhook_aws::sdk::sdk_config(&env, "DYNAMODB").unwrap();
    let (attempt, retry) = (
        config.timeout_config().unwrap().operation_attempt_timeout().unwrap(),
        config.retry_config().unwrap(),
    );
    // `max_backoff` also limits the wait that AWS asks for.
    let call = retry.max_attempts() * attempt + (retry.max_attempts() - 1) * retry.max_backoff();
    let template = read("template.yaml");
    assert!(resource(&template, "StripeWebhookFunction").contains("Timeout: 10\n"));
    assert!(call < Duration::from_secs(10), "the webhook makes one call");
    // A worker reads and writes once for the batch and once more for each account.
    assert!(globals(&template).contains("Timeout: 30 ") && 4 * call < Duration::from_secs(30));
}

/// The core can do IO only through a dependency or the standard library. `common/core/clippy.toml` forbids
/// the standard library's clocks, environment and IO.
#[test]
fn the_core_depends_on_nothing_that_does_io() {
    let manifest = read("common/core/Cargo.toml");
    let dependencies = manifest.split("[dependencies]\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<&str> = dependencies.lines().filter_map(|line| line.split(['.', ' ']).next()).collect();
    let pure = ["base64", "hmac", "jiff", "memchr", "serde", "serde_json", "sha2", "thiserror", "toml"];
    assert_eq!(names, pure);
    assert!(!manifest.contains("dev-dependencies"));
    let forbidden = read("common/core/clippy.toml");
    for method in ["SystemTime::now", "Instant::now", "env::var", "fs::read", "thread::spawn"] {
        assert!(forbidden.contains(method), "{method}");
    }
}

/// Every Rust file of a folder, also of the folders in it.
fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn only_accounts_writes_an_account() {
    let mut files = Vec::new();
    for folder in ["common", "cli", "functions", "local"] {
        sources(&root().join(folder), &mut files);
    }
    let writes = |file: &&PathBuf| std::fs::read_to_string(file).unwrap().contains("items::account(");
    let writers: Vec<&PathBuf> = files.iter().filter(writes).collect();
    assert_eq!(writers, [&root().join("common/service/src/accounts.rs")]);
}
