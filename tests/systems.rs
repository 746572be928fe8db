//! The systems that tallyhook replaces. Each file plays the story of one, from its first to its last
//! sentence, through the public routes.

mod a_tier_that_never_changed;
mod b_done_for_you_orders;
mod c_strategy_marketplace;
mod d_credit_system;
mod e_onboarding_portal;
