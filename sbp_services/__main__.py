from sbp_services.cli import main

if __name__ == "__main__":
    main()
