//! The routes of the admin API, and the role that each needs.

use lambda_http::http::Method;

use super::not_found;
use crate::config::Role;
use crate::http::answer::Problem;

/// A route, with the ids of its path.
pub(super) enum Route<'a> {
    Me,
    ListEvents,
    ShowEvent(&'a str),
    DismissEvent(&'a str),
    CountEvents,
    Parked,
    Retry,
    Reconcile,
    Gap,
    CheckUser(&'a str),
    Ledger(&'a str),
    FixUser(&'a str),
    Find,
    Health,
    ListJobs,
    RunJob,
    ListOrders,
    ShowOrder(&'a str),
    Audits,
    Catalog,
    CatalogVersions,
    CatalogVersion(&'a str),
    PutCatalog,
    Import,
    ImportProgress(&'a str),
    ExportUsers,
    ExportLedger,
    Erase(&'a str),
}

impl<'a> Route<'a> {
    /// The route of a decoded path.
    pub(super) fn find(method: &Method, path: &'a str) -> Result<Self, Problem> {
        // A user id may contain slashes and end with one. No id ends with "/ledger".
        if let Some(id) = path.strip_prefix("/admin/stripe/check-user/") {
            return match (method, id.strip_suffix("/ledger")) {
                (&Method::GET, Some(id)) => Ok(Self::Ledger(id)),
                (&Method::GET, None) => Ok(Self::CheckUser(id)),
                _ => Err(Problem::Method("GET, HEAD")),
            };
        }
        if let Some(id) = path.strip_prefix("/admin/stripe/fix-user/") {
            return if method == Method::POST { Ok(Self::FixUser(id)) } else { Err(Problem::Method("POST")) };
        }
        if let Some(id) = path.strip_prefix("/admin/erase/") {
            return if method == Method::POST { Ok(Self::Erase(id)) } else { Err(Problem::Method("POST")) };
        }
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let ["admin", parts @ ..] = parts.as_slice() else { return Err(not_found()) };
        Ok(match (method, parts) {
            (&Method::GET, ["me"]) => Self::Me,
            (&Method::GET, ["stripe", "webhook-logs"]) => Self::ListEvents,
            (&Method::GET, ["stripe", "webhook-logs", id]) => Self::ShowEvent(id),
            (&Method::POST, ["stripe", "webhook-logs", id, "dismiss"]) => Self::DismissEvent(id),
            (&Method::GET, ["stripe", "event-counts"]) => Self::CountEvents,
            (&Method::GET, ["stripe", "parked"]) => Self::Parked,
            (&Method::POST, ["stripe", "retry-webhooks"]) => Self::Retry,
            (&Method::POST, ["stripe", "reconcile"]) => Self::Reconcile,
            (&Method::GET, ["stripe", "gap"]) => Self::Gap,
            (&Method::POST, ["stripe", "find"]) => Self::Find,
            (&Method::GET, ["stripe", "subscription-health"]) => Self::Health,
            (&Method::GET, ["provisioning"]) => Self::ListJobs,
            (&Method::POST, ["provisioning"]) => Self::RunJob,
            (&Method::GET, ["orders"]) => Self::ListOrders,
            (&Method::GET, ["orders", id]) => Self::ShowOrder(id),
            (&Method::GET, ["audit"]) => Self::Audits,
            (&Method::GET, ["catalog"]) => Self::Catalog,
            (&Method::PUT, ["catalog"]) => Self::PutCatalog,
            (&Method::GET, ["catalog", "history"]) => Self::CatalogVersions,
            (&Method::GET, ["catalog", "history", version]) => Self::CatalogVersion(version),
            (_, ["catalog"]) => return Err(Problem::Method("GET, HEAD, PUT")),
            (&Method::POST, ["import"]) => Self::Import,
            (&Method::GET, ["import", batch]) => Self::ImportProgress(batch),
            (&Method::GET, ["export", "users"]) => Self::ExportUsers,
            (&Method::GET, ["export", "ledger"]) => Self::ExportLedger,
            (_, ["import"]) => return Err(Problem::Method("POST")),
            (
                _,
                ["stripe", "retry-webhooks" | "reconcile" | "find"]
                | ["stripe", "webhook-logs", _, "dismiss"],
            ) => return Err(Problem::Method("POST")),
            (_, ["provisioning"]) => return Err(Problem::Method("GET, HEAD, POST")),
            (
                _,
                ["stripe", "webhook-logs" | "event-counts" | "parked" | "gap" | "subscription-health"]
                | ["stripe", "webhook-logs", _]
                | ["me" | "audit" | "orders"]
                | ["orders" | "import", _]
                | ["export", "users" | "ledger"]
                | ["catalog", "history"]
                | ["catalog", "history", _],
            ) => return Err(Problem::Method("GET, HEAD")),
            _ => return Err(not_found()),
        })
    }

    /// The least role that may call the route. This match lists every route, so a new one does not compile
    /// without its role.
    pub(super) fn role(&self) -> Role {
        match self {
            Self::Me
            | Self::ListEvents
            | Self::ShowEvent(_)
            | Self::CountEvents
            | Self::Parked
            | Self::Gap
            | Self::CheckUser(_)
            | Self::Ledger(_)
            | Self::Find
            | Self::Health
            | Self::ListJobs
            | Self::ListOrders
            | Self::ShowOrder(_)
            | Self::ImportProgress(_)
            | Self::ExportUsers
            | Self::ExportLedger
            | Self::Audits
            | Self::Catalog
            | Self::CatalogVersions
            | Self::CatalogVersion(_) => Role::Viewer,
            Self::DismissEvent(_)
            | Self::Retry
            | Self::Reconcile
            | Self::FixUser(_)
            | Self::RunJob
            | Self::Import
            | Self::PutCatalog => Role::Operator,
            Self::Erase(_) => Role::Admin,
        }
    }
}
