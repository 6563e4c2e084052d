"""The firewall itself: rules, their compiled image, their durable store and the kernel that enforces them."""
