//! A whole deployment in one test: the real handlers over the real AWS SDK. Its transport ends in an embedded
//! DynamoDB and in the local stack's SQS instead of a socket, counts the calls, and can make them fail.

mod events;
mod queues;
mod requests;
mod stack;
mod store;
mod transport;

use tallyhook_core::timestamp::Timestamp;

pub use self::events::{pack, sample, unnamed_pack, with_id};
pub use self::queues::records;
pub use self::requests::{EntryPoint, call, read_answer, request, signature};
pub use self::stack::World;
pub use self::store::change_packed;
pub use self::transport::{Call, Fault, aws_error, cancelled};

pub const SECRET: &str = "whsec_test";
pub const APP_TOKEN: &str = "app-test";
pub const ADMIN_TOKEN: &str = "admin-test";

pub fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    Timestamp::from_unix(i64::try_from(now).unwrap())
}
