//! What belongs together is there: a family has its function, queue, SAM resource, rule file and samples, and the template says the
//! same about tables and retries as the code.

use std::path::{Path, PathBuf};

use common::config::queue_variable;
use common::event::{EventType, Family};
use common::store::schema::LISTED;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// `invoice-paid` → `InvoicePaid`.
fn logical(family: Family) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    family.as_str().split('-').map(capital).collect()
}

/// The text of one resource of the template.
fn resource(template: &str, name: &str) -> String {
    let start = template.find(&format!("\n  {name}:\n")).unwrap_or_else(|| panic!("template.yaml has no {name}"));
    let rest = &template[start + 1..];
    let end = rest
        .match_indices("\n  ")
        .find(|(place, _)| !rest[place + 3..].starts_with([' ', '#']) && *place > 0)
        .map_or(rest.len(), |(place, _)| place);
    rest[..end].to_owned()
}

fn samples() -> Vec<String> {
    let entries = std::fs::read_dir(root().join("events")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name.ends_with(".json")).collect()
}

#[test]
fn every_family_has_its_function_queue_resource_rule_file_and_wrapped_sample() {
    let template = read("template.yaml");
    for family in Family::ALL {
        let name = family.as_str();
        let main = read(&format!("functions/{name}/src/main.rs"));
        assert!(main.contains(&format!("Family::{}", logical(family))), "functions/{name} works for another family");
        read(&format!("common/src/domain/decide/{}.rs", name.replace('-', "_")));
        read(&format!("events/lambda/{name}.json"));
        let function = resource(&template, &format!("{}Function", logical(family)));
        assert!(function.contains(&format!("Binary: {name}\n")), "{name}");
        assert!(function.contains("ReportBatchItemFailures"), "{name} would lose or repeat whole batches");
        assert!(function.contains("BatchSize: 10"), "{name}");
        let queue = resource(&template, &format!("{}Queue", logical(family)));
        assert!(queue.contains(&format!("-{name}")), "{name}");
        let webhook = resource(&template, "StripeWebhookFunction");
        assert!(webhook.contains(&format!("{}: !Ref {}Queue", queue_variable(family), logical(family))), "{name}");
    }
}

#[test]
fn the_apps_webhook_has_its_function_queue_and_law_of_retries() {
    let template = read("template.yaml");
    let queue = resource(&template, "ProvisionQueue");
    for part in ["-provision", "VisibilityTimeout: 180", "maxReceiveCount: 4"] {
        assert!(queue.contains(part), "{part}");
    }
    let function = resource(&template, "ProvisionFunction");
    assert!(function.contains("Binary: provision\n") && function.contains("ReportBatchItemFailures"));
    assert!(read("functions/provision/src/main.rs").contains("Provision::from_env"));
    for family in Family::ALL {
        let role = resource(&template, &format!("{}Role", logical(family)));
        assert!(role.contains("!Ref NudgePolicy"), "{family} may not queue a job that its transaction wrote");
    }
}

#[test]
fn every_routed_event_type_has_a_sample_that_reads_as_it() {
    let samples = samples();
    for kind in EventType::KNOWN {
        let of_kind: Vec<_> = samples.iter().filter(|name| name.starts_with(&format!("{kind}."))).collect();
        assert!(!of_kind.is_empty(), "events/{kind}.json is missing");
    }
    for name in &samples {
        let event = common::event::read(read(&format!("events/{name}")).as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(name.starts_with(&format!("{}.", event.kind)), "{name} holds a {}", event.kind);
    }
}

#[test]
fn a_queue_hides_a_message_six_times_as_long_as_its_function_may_run_and_allows_one_attempt_more_than_there_are_delays() {
    let template = read("template.yaml");
    assert!(template.contains("    Timeout: 30 "), "the functions' time-out");
    let delays = template.split("RETRY_DELAYS_SECONDS: \"").nth(1).unwrap().split('"').next().unwrap().split(',').count();
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
    assert!(!accounts.contains("TimeToLive"), "nothing in the accounts table expires");
    for table in [accounts, events] {
        assert!(table.contains("PointInTimeRecoveryEnabled: true") && table.contains("DeletionProtectionEnabled: true"));
    }
}
